"""The command line as a user meets it: processes, signals, exit codes, the last line of standard output."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from metatrain import cli
from metatrain.tracking.jsonl import read_lines
from tests.command_line import last_json, metatrain, process_arguments
from tests.configurations import TINY

KEYS = {"run_id", "run_dir", "steps", "seconds", "tasks_per_second", "params_sha256", "test"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder, last_json(metatrain(folder, "train", "tiny.yaml", "--json"))


def test_train_ends_with_one_json_object_and_shows_its_baselines(finished):
    folder, result = finished
    assert result.keys() >= KEYS
    assert result["test"].keys() >= {"accuracy", "ci95", "tasks", "transductive"}
    assert [baseline["learner"] for baseline in result["baselines"]] == [
        *("untrained", "nearest_neighbour", "from_scratch")
    ]
    assert (folder / result["run_dir"] / "metrics.jsonl").exists()
    assert not (folder / "mlflow.db").exists(), "tracking.uri: null"


def test_evaluate_on_other_ways_and_shots(finished):
    folder, trained = finished
    same = last_json(metatrain(folder, "evaluate", trained["run_dir"], "--json"))
    assert same.keys() >= KEYS
    assert same["test"] == trained["test"]
    other = last_json(
        metatrain(folder, "evaluate", trained["run_dir"], "tasks.test.ways=2", "tasks.test.shots=4", "--json")
    )
    assert other["test"]["accuracy"] != same["test"]["accuracy"]
    refused = metatrain(folder, "evaluate", trained["run_dir"], "tasks.test.ways=9", expect=2)
    assert "tasks.test.ways" in refused.err
    assert len(refused.err.strip().splitlines()) == 1


def test_config_show_is_a_configuration_and_list_and_schema_print(folder):
    shown = metatrain(folder, "config", "show", "tiny.yaml", "outer.lr=1e-4").out
    (folder / "shown.yaml").write_text(shown)
    assert yaml.safe_load(shown)["outer"]["lr"] == 1e-4
    assert metatrain(folder, "config", "show", "shown.yaml").out == shown
    listed = metatrain(folder, "list").out
    assert all(name in listed for name in ("maml", "protonet", "conv4", "omniglot", "strokes"))
    assert json.loads(metatrain(folder, "config", "schema").out)["required"] == ["tasks", "model", "algorithm"]


HEAVY = {"torch", "ray", "mlflow", "numpy", "matplotlib", "pyarrow", "yaml", "optuna", "grpc"}
COMMANDS = {
    "train",
    "evaluate",
    "search",
    "submit",
    "jobs",
    "status",
    "logs",
    "stop",
    "report",
    "list",
    "config",
    "data",
}
IMPORTED = """
import sys
from metatrain.cli import main
try:
    main()
finally:
    print("imported", *sys.modules)
"""


@pytest.mark.parametrize("command", [(), ("train",), ("data", "show")])
def test_help_is_quick_since_it_imports_nothing_heavy(command):
    arguments = [sys.executable, "-c", IMPORTED, *command, "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    *shown, imported = done.stdout.splitlines()
    assert not HEAVY & set(imported.split())
    if not command:
        named = [line.split()[1] for line in shown if len(line.split()) > 2 and line.startswith("│")]
        assert set(named) >= COMMANDS


def test_data_prepare_and_show(folder):
    assert "strokes" in metatrain(folder, "data", "prepare", "strokes").out
    metatrain(folder, "data", "show", "strokes", "--ways", "4", "--out", "episode.png", "--split", "test")
    with Image.open(folder / "episode.png") as picture:
        assert min(picture.size) > 200
    refused = metatrain(folder, "data", "show", "strokes", "--split", "tests", expect=2)
    assert "--split" in refused.err


WRONG = [
    (["train", "nowhere.yaml"], "nowhere.yaml: No such file"),
    (["evaluate", "."], "is not a run"),
    (["data", "prepare", "omniglott"], "did you mean omniglot?"),
    (["train"], "CONFIG: missing"),
    (["train", "tiny.yaml", "outer.lr=-1"], "outer.lr: -1 is not a positive number"),
    (["train", "tiny.yaml", "algorithm.inner_lrate=1"], "did you mean inner_lr?"),
    (["train", "tiny.yaml", "algorithm={name: mamal}"], "did you mean maml?"),
    (["train", "tiny.yaml", "executor.gpus_per_worker=1"], "executor.gpus_per_worker: 1 asked for"),
    (["train", "tiny.yaml", "tracking.uri=http://127.0.0.1:9"], "http://127.0.0.1:9"),
    (["train", "--resume", "nothing"], "no run at nothing"),
    (["data", "prepare", "omniglot", "root=nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_a_wrong_request_is_one_line_exit_code_2_and_leaves_nothing_behind(folder, arguments, said):
    before = sorted(folder.rglob("*"))
    done = metatrain(folder, *arguments, expect=2)
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert "Traceback" not in done.err
    assert sorted(folder.rglob("*")) == before


LONG = ["outer.steps=400", "evaluation.every=100", "checkpoint.every=20"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_checkpoints_and_leaves_and_the_run_goes_on(folder, number):
    running = subprocess.Popen(
        process_arguments("train", "tiny.yaml", *LONG), cwd=folder, stderr=subprocess.PIPE, text=True
    )
    run = wait_for_step(folder, 5)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert f"metatrain train --resume {run.relative_to(folder)}" in said
    stopped = max(int(checkpoint.name) for checkpoint in (run / "checkpoints").iterdir())
    assert 5 <= stopped < 400
    done = last_json(metatrain(folder, "train", "--resume", str(run), "--json"))
    assert done["steps"] == 400
    assert [line["step"] for line in read_lines(run / "metrics.jsonl") if "train/loss" in line] == list(range(1, 401))


def test_a_second_driver_on_the_same_run_is_refused(folder):
    running = subprocess.Popen(process_arguments("train", "tiny.yaml", *LONG), cwd=folder, stderr=subprocess.DEVNULL)
    run = wait_for_step(folder, 5)
    refused = metatrain(folder, "train", "--resume", str(run), expect=2)
    assert str(running.pid) in refused.err
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130


def test_a_loss_that_is_no_number_ends_with_1_and_names_what_is_kept(folder):
    done = metatrain(folder, "train", "tiny.yaml", "outer.optimizer=sgd", "outer.lr=1e30", expect=1)
    assert "the loss became" in done.err
    assert "go on with `metatrain train --resume" in done.err
    assert "Traceback" not in done.err


def wait_for_step(folder: Path, step: int, timeout: float = 60) -> Path:
    """The run folder, once the run in it has recorded `step`."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for metrics in folder.glob("runs/*/metrics.jsonl"):
            if any(line["step"] >= step for line in read_lines(metrics)):
                return metrics.parent
        time.sleep(0.05)
    raise TimeoutError(f"no run reached step {step} in {timeout} s")


def killed_and_resumed(folder: Path, kills: int, extra: list[str]) -> tuple[dict, list[int]]:
    """Trains with the driver killed `kills` times; the last result, and the step each kill met.

    One kill in five comes while the driver starts; the others up to a second after its first new step, in which it
    steps, writes a checkpoint every ten steps, and to MLflow before each.
    """
    chance = random.Random(kills)
    metrics: Path | None = None
    steps = []
    for kill in range(kills):
        arguments = ["--resume", str(metrics.parent)] if metrics else ["tiny.yaml", *extra]
        driver = subprocess.Popen(process_arguments("train", *arguments), cwd=folder, stderr=subprocess.DEVNULL)
        metrics = metrics or wait_for_run(folder) / "metrics.jsonl"
        if kill % 5 != 4:
            wait_for_growth(metrics, driver)
        time.sleep(chance.uniform(0, 1 if kill % 5 != 4 else 4))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        steps.append(max((line["step"] for line in read_lines(metrics)), default=0) if metrics.exists() else 0)
    return last_json(metatrain(folder, "train", "--resume", str(metrics.parent), "--json")), steps


def wait_for_growth(metrics: Path, driver: subprocess.Popen) -> None:
    """Until the driver has written to `metrics`, or has nothing left to write."""
    seen = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while driver.poll() is None and (not metrics.exists() or metrics.stat().st_mtime_ns == seen):
        time.sleep(0.01)


def wait_for_run(folder: Path) -> Path:
    while not list(folder.glob("runs/*/run.json")):
        time.sleep(0.05)
    return next(folder.glob("runs/*/run.json")).parent


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills", [3, 20])
def test_a_driver_killed_at_any_instant_loses_nothing_and_doubles_nothing(folder, kills):
    import mlflow

    last = 50 * kills
    extra = [f"outer.steps={last}", "evaluation.every=50", "checkpoint.every=10", "outer.tasks_per_step=2"]
    undisturbed = last_json(metatrain(folder, "train", "tiny.yaml", *extra, "runs.root=undisturbed", "--json"))
    extra.append(f"tracking.uri=sqlite:///{folder}/mlflow.db")
    result, met = killed_and_resumed(folder, kills, extra)
    print(f"killed at steps {met}")
    assert len(set(met)) > kills / 2, "the kills are to meet the run in different places"
    assert result["params_sha256"] == undisturbed["params_sha256"]
    assert result["test"] == undisturbed["test"]

    steps = [line["step"] for line in read_lines(Path(result["run_dir"]) / "metrics.jsonl") if "train/loss" in line]
    assert steps == list(range(1, last + 1))
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'metatrain'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    for key, every in (("train/loss", 1), ("train/accuracy", 1), ("validation/accuracy", 50)):
        points = [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
        assert sorted(points) == list(range(every, last + 1, every)), key


@pytest.mark.slow
def test_on_ray_a_signal_to_the_whole_process_group_checkpoints_too(folder):
    """Ctrl-C at a terminal reaches the workers as well: they must not die of it before the state is kept."""
    arguments = ["tiny.yaml", *LONG, "executor.name=ray", "executor.workers=2"]
    running = subprocess.Popen(
        process_arguments("train", *arguments), cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    run = wait_for_step(folder, 5)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=90)
    assert running.returncode == 130, said
    assert any((run / "checkpoints").iterdir())


OWN = """
from dataclasses import dataclass
from metatrain.algorithms.optimization.maml import MAML
from tasks.sources.strokes import Strokes
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.ReLU())

@dataclass(frozen=True)
class Method(MAML):
    inner_lr: float = 0.2

@dataclass(frozen=True)
class Source(Strokes):
    jitter: float = 0.5
"""


@pytest.mark.slow
def test_a_model_an_algorithm_and_tasks_of_ones_own_reach_the_workers(folder):
    (folder / "mine.py").write_text(OWN)
    own = {"tasks": {**TINY["tasks"], "name": "mine:Source"}, "algorithm": {"name": "mine:Method"}}
    own["model"] = {"name": "mine:Net", "arguments": {"width": 12}}
    (folder / "own.yaml").write_text(yaml.safe_dump(TINY | own))
    here = last_json(metatrain(folder, "train", "own.yaml", "--json"))
    there = last_json(metatrain(folder, "train", "own.yaml", "executor.name=ray", "--json"))
    assert here["params_sha256"] == there["params_sha256"]
    again = last_json(metatrain(folder, "evaluate", there["run_dir"], "--json"))
    assert again["test"] == here["test"]


def test_a_warning_is_one_line_without_a_line_of_our_code() -> None:
    told = cli._format_warning(UserWarning("2 of at\nleast 4 queries"), UserWarning, "cli.py", 3)
    assert told == "metatrain: warning: 2 of at least 4 queries\n"
