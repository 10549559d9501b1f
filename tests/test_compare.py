"""`metatrain compare`: the same tasks for all, what it says, what it refuses, its page."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import typer

from metatrain.cli.comparison import compare_command
from metatrain.config.best_params import best_params
from metatrain.config.load import load_config
from metatrain.evaluation.evaluate import gather_scores
from metatrain.runs.locations import open_run
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from metatrain.types import ShardRequest
from tests.command_line import last_json, metatrain
from tests.compared_runs import tiny_run
from tests.report_pages import Page


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """MAML, prototypical networks trained with 4 ways, and an MLP, which has no statistics of batches."""
    root = tmp_path_factory.mktemp("compared")
    mlp = "model={name: mlp, width: 8, depth: 1}"
    return [
        tiny_run(root, "maml"),
        tiny_run(root, "proto", "algorithm={name: protonet}", "tasks.train.ways=4"),
        tiny_run(root, "mlp", mlp, "model.width=8"),
    ]


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory) -> tuple[Path, dict, list[str]]:
    """The folder in which the three were compared, and what was said."""
    folder = tmp_path_factory.mktemp("comparing")
    few = ["evaluation.tasks=12", "evaluation.seed=3", "--also", "tasks.test.ways=4 tasks.test.shots=2"]
    done = metatrain(folder, "compare", *map(str, runs), *few, "--json")
    return folder, last_json(done), done.out.splitlines()


def test_all_are_scored_on_the_same_tasks_both_ways(compared):
    _, found, _ = compared
    shape = {"ways": 3, "shots": 1, "queries": 3}
    assert (
        found["tasks"]
        == {"name": "the same tasks", "source": "strokes", "split": "test", "tasks": 12, "seed": 3} | shape
    )
    by_name = {run["label"]: run for run in found["runs"]}
    assert by_name["maml"]["results"].keys() == by_name["proto"]["results"].keys() == {"transductive", "inductive"}
    assert by_name["mlp"]["results"].keys() == {"inductive"}, "without statistics of batches"
    assert found["kind"] == "inductive", "the one that all three have"
    values = [run["results"]["inductive"]["value"] for run in found["runs"]]
    assert values == sorted(values, reverse=True)


def test_what_it_says_of_a_run_is_what_evaluate_says(compared, runs):
    folder, found, _ = compared
    few = ["evaluation.tasks=12", "evaluation.seed=3", "evaluation.baselines=false"]
    told = last_json(metatrain(folder, "evaluate", str(runs[0]), *few, "--json"))
    (maml,) = (run for run in found["runs"] if run["label"] == "maml")
    for key, kind in (("test", "transductive"), ("test_inductive", "inductive")):
        one = maml["results"][kind]
        assert one["value"] == told[key]["accuracy"] and one["ci95"] == told[key]["ci95"]
        assert one["ci95_classes"] == told[key]["ci95_classes"] and one["curve"] == told[key]["curve"]
        assert one["metrics"].keys() == told[key]["metrics"].keys() >= {"accuracy", "ece", "brier"}
        assert all(values == pytest.approx(told[key]["calibration"][of]) for of, values in one["calibration"].items())
        for name, of_one in one["metrics"].items():
            assert of_one == pytest.approx(told[key]["metrics"][name], rel=1e-9)


def test_on_validation_classes_the_tasks_are_those_of_training_s_validations(runs, tmp_path):
    home = open_run(str(runs[0]))
    worker, params = Worker(load_config(home.config), torch.device("cpu")), best_params(home)[0]
    scores = gather_scores(InProcess(worker), ShardRequest("score", "validation", 0), params, 6, 2)
    found = last_json(metatrain(tmp_path, "compare", str(runs[0]), "--split", "validation", "--json"))
    value = found["runs"][0]["results"]["transductive"]["value"]
    assert value == pytest.approx(float(scores["accuracy"][:, -1].mean()), abs=1e-7)
    assert found["tasks"]["split"] == "validation"
    page = (tmp_path / "compare.html").read_text()
    assert "6 validation tasks of seed" in page and "validation classes" in page and "test classes" not in page
    assert "--split validation" in page


def test_differences_are_those_of_the_scores(compared):
    _, found, _ = compared
    values = {run["label"]: run["results"]["inductive"]["value"] for run in found["runs"]}
    assert len(found["pairs"]) == 3
    for pair in found["pairs"]:
        assert pair["value"] == pytest.approx(values[pair["first"]] - values[pair["second"]])
        assert 0 <= pair["p"] <= pair["p_holm"] <= 1 and pair["simultaneous"] >= pair["ci95"]
    assert sorted({label for group in found["groups"] for label in group}) == sorted(values)


def test_other_tasks_and_training_classes_have_columns_of_their_own(compared):
    _, found, _ = compared
    (also,) = found["also"]
    assert (also["ways"], also["shots"], also["tasks"]) == (4, 2, 12)
    by_name = {run["label"]: run for run in found["runs"]}
    name = "tasks.test.ways=4 tasks.test.shots=2"
    assert also["order"] == ["proto"]
    assert "head was trained for 3" in by_name["maml"]["also"][name]["refused"]
    for run in found["runs"]:
        seen, held_out = run["training_classes"], run["results"]["inductive"]
        assert seen["kind"] == "inductive" and seen["tasks"] == 12
        assert seen["metrics"]["loss"] != held_out["metrics"]["loss"], "they are other tasks"
        assert run["gap"]["value"] == pytest.approx(seen["value"] - held_out["value"])
        assert run["gap"]["ci95"] == pytest.approx((seen["ci95"] ** 2 + held_out["ci95"] ** 2) ** 0.5)
    assert by_name["maml"]["adaptation"]["steps"] == [0, 1, 2] and by_name["proto"]["adaptation"]["steps"] == [0]
    for run in found["runs"]:
        assert all(0 < seconds < 10 for seconds in run["adaptation"]["seconds"])
        assert run["adaptation"]["seconds"] == sorted(run["adaptation"]["seconds"])


def test_the_terminal_has_a_table_and_the_page_has_all_sections(compared):
    folder, found, lines = compared
    shape = "3-way 1-shot, 3 queries a class"
    assert lines[0].startswith(f"The same tasks for all: strokes, {shape}, 12 test tasks of seed 3.")
    assert lines[1].split()[:3] == ["run", "algorithm", "accuracy"]
    assert found["overrides"] == ["evaluation.tasks=12", "evaluation.seed=3"]
    assert [line.split()[0] for line in lines[2:5]] == [run["label"] for run in found["runs"]]
    page = Page((folder / "compare.html").read_text())
    sections = ["summary", "results", "differences", "adaptation", "calibration", "training", "runs", "use"]
    assert [section["id"] for section in page.all("section")] == sections
    assert len(page.all("svg")) == 5
    assert "metatrain compare " in page.text and "evaluation.seed=3 --also" in page.text


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["tasks.test.ways=20"], "maml: ways: 20 classes, and the head was trained for 3: set fewer"),
        (["evaluation.baselines=false"], "evaluation.baselines: has no effect on a comparison: remove it"),
        (["--also", "tasks.test.ways=40"], "--also tasks.test.ways=40: maml: ways: 40 classes, and the head"),
        (["--also", "nothing.yaml"], "nothing.yaml"),
        (["--also", "tasks.test.ways=2", "--also", "tasks.test.ways=2"], "--also: names the same tasks twice"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused_in_a_line(runs, tmp_path, given, says):
    done = metatrain(tmp_path, "compare", str(runs[0]), str(runs[2]), "evaluation.tasks=2", *given, expect=2)
    assert says in done.err.splitlines()[-1], done.err
    assert done.out == ""


def test_a_run_named_twice_and_a_folder_without_a_checkpoint_are_refused(runs, tmp_path):
    done = metatrain(tmp_path, "compare", str(runs[0]), f"{runs[0]}/", expect=2)
    assert done.err.endswith("is named 2 times: name each run once\n")
    empty = Path(shutil.copytree(runs[0], tmp_path / "run"))
    shutil.rmtree(empty / "checkpoints")
    assert "holds no checkpoint yet" in metatrain(tmp_path, "compare", str(runs[1]), str(empty), expect=2).err


@pytest.fixture(scope="module")
def proto(tmp_path_factory) -> str:
    """Prototypical networks trained on so few classes that a classifier can tell all of them apart."""
    return str(tiny_run(tmp_path_factory.mktemp("few"), "proto", "algorithm={name: protonet}", "tasks.classes=20"))


def test_a_run_is_compared_with_itself_under_settings_of_its_own(proto, runs, tmp_path):
    places = [proto, f"{proto},algorithm.name=nearest_centroid", f"{runs[0]},algorithm.inner_lr=0.3"]
    done = metatrain(tmp_path, "compare", *places, "evaluation.tasks=6", "--json")
    found = {run["label"]: run for run in last_json(done)["runs"]}
    assert set(found) == {"proto", "proto nearest_centroid", "maml 0.3"}
    assert found["proto nearest_centroid"]["algorithm"] == "nearest_centroid"
    assert found["proto nearest_centroid"]["settings"] == ["algorithm.name=nearest_centroid"]
    by_itself = metatrain(
        tmp_path, "evaluate", proto, "algorithm.name=nearest_centroid", "evaluation.tasks=6", "--json"
    )
    scored = found["proto nearest_centroid"]["results"]["transductive"]["value"]
    assert scored == pytest.approx(last_json(by_itself)["test"]["accuracy"])
    assert f"{proto},algorithm.name=nearest_centroid" in (tmp_path / "compare.html").read_text()


def test_a_pretrained_run_is_compared_on_tasks_of_a_source_with_other_training_classes(proto, tmp_path):
    pretrained = ("algorithm={name: simple_shot}", "tasks.classes=10", "tasks.train={ways: 4, shots: 1, queries: 1}")
    simple = str(tiny_run(tmp_path, "simple", *pretrained))
    done = metatrain(tmp_path, "compare", proto, simple, "evaluation.tasks=6", "--json")
    assert {run["label"] for run in last_json(done)["runs"]} == {"proto", "simple"}


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ("tasks.test.ways=2", "tasks.test.ways cannot differ between runs: set algorithm.* or evaluation.inner_steps"),
        ("algorithm.name=simple_shot", "simple_shot reads a mean over training tasks that the run does not keep"),
        ("algorithm.name=relation", "relation reads relation."),
        ("algorithm.ways=2", "algorithm.ways"),
    ],
    ids=str,
)
def test_settings_of_one_run_that_cannot_be_are_refused_in_a_line(proto, runs, tmp_path, own, says):
    done = metatrain(tmp_path, "compare", f"{proto},{own}", str(runs[0]), "evaluation.tasks=2", expect=2)
    assert says in done.err.splitlines()[-1], done.err


def test_runs_of_somebody_else_are_compared_without_their_code(runs, tmp_path):
    theirs = Path(shutil.copytree(runs[0], tmp_path / "run"))
    config = theirs / "config.yaml"
    config.write_text(config.read_text().replace("name: maml\n", "name: mine:Net\n", 1))
    done = metatrain(tmp_path, "compare", str(runs[1]), str(theirs), expect=2)
    assert "names code to import" in done.err and "--trust" in done.err


def test_a_signal_ends_it_between_shards_without_a_page(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def kill_once_it_is_heeded():
        while signal.getsignal(signal.SIGTERM) is handler:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=kill_once_it_is_heeded)
    killer.start()
    with pytest.raises(typer.Exit) as ended:
        compare_command([str(runs[0]), str(runs[2])], ["evaluation.tasks=100000"], [], "test", None, False)
    killer.join()
    said = capsys.readouterr()
    assert ended.value.exit_code == 143 and said.out == ""
    assert said.err.splitlines()[-1].startswith("stopped maml, the same tasks, ")
    assert said.err.endswith(": compare again\n") and list(tmp_path.iterdir()) == []


def test_a_comparison_of_one_has_no_differences(runs, tmp_path):
    found = last_json(metatrain(tmp_path, "compare", str(runs[2]), "evaluation.tasks=2", "--json", "--out=one.html"))
    assert found["pairs"] == [] and found["groups"] == [["mlp"]]
    assert "There is one run" in Page((tmp_path / "one.html").read_text()).text


def test_json_is_one_line_without_numbers_that_are_not_finite(compared):
    _, found, _ = compared
    assert json.loads(json.dumps(found, allow_nan=False)) == found
