"""Training from Python, in a script, a notebook or a thread; and the configurations that ship with metatrain."""

import io
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metatrain
from metatrain.cli.python import flatten_settings
from metatrain.config.load import load_config
from metatrain.config.shipped import describe_config, find_config, shipped_configs
from metatrain.tracking.console import Display
from tests.configurations import CONFIGS, TINY
from tune.config.search_config import load_search_config

FEW: dict[str, Any] = {
    "evaluation": {"tasks": 2, "validation_tasks": 2, "baselines": False},
    "engine.compile": "off",
    "tracking.uri": None,
}


def test_train_in_a_thread_leaves_the_process_as_it_was_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads(), list(sys.path), signal.getsignal(signal.SIGINT)
    torch.set_num_threads(2)
    found: list[Any] = []
    runs = {"root": tmp_path / "runs", "name": "mine"}

    def work() -> None:
        found.append(metatrain.train(TINY, outer={"steps": np.int64(2)}, runs=runs, **FEW))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before[0])
    assert (torch.get_num_threads(), sys.path, signal.getsignal(signal.SIGINT)) == before
    (result,) = found
    assert result.finished and result.steps == 2 and result.results[0].learner == "trained"
    assert Path(result.run_dir).parent == tmp_path / "runs" and "-mine-" in result.run_dir
    told = capsys.readouterr()
    assert told.out == "" and "finished at step 2 of 2" in told.err
    longer = metatrain.train(resume=result.run_dir, outer={"steps": 3}, progress=False)
    assert longer.steps == 3 and longer.finished
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match=r"outer\.lr: cannot change in a resumed run"):
        metatrain.train(resume=result.run_dir, **{"outer.lr": 0.5})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (((), {}), "config: name a configuration"),
        ((("none.yaml",), {}), "No such file"),
        ((("strokes-protonet-5w1s",), {"outer": {"stepz": 3}}), "outer.stepz: no such setting"),
        ((("strokes-protonet-5w1s",), {"seed.a": 3}), "seed"),
        (((5,), {}), "config: of type int: use a file"),
        (((TINY,), {"take_over": True}), "take_over: works only with resume"),
    ],
)
def test_wrong_requests_from_python_are_told_as_on_the_command_line(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        metatrain.train(*given[0], **given[1])


def test_settings_are_nested_or_dotted_and_values_pythons_own() -> None:
    settings = {
        "outer": {"steps": 3, "groups": {"inner_lr": {"lr": 0.1}}},
        "tasks.root": Path("/x"),
        "seed": np.int64(1),
    }
    assert flatten_settings({**settings, "model": {"name": "mlp", "hidden": (4, 4)}}) == {
        "outer.steps": 3,
        "outer.groups.inner_lr.lr": 0.1,
        "tasks.root": "/x",
        "seed": 1,
        "model": {"name": "mlp", "hidden": [4, 4]},
    }


def test_a_notebook_gets_one_line_that_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", sys)
    stream = io.StringIO()
    display = Display(stream, "training")
    display.update(1, 3, "long text", True)
    display.update(2, 3, "short", True)
    display.say("step 2: an event")
    display.close()
    lines = stream.getvalue().split("\r")
    assert lines[1] == "training 1/3  long text"
    assert lines[2].split("\n") == ["training 2/3  short    ", "step 2: an event", ""]


def test_configurations_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = shipped_configs()
    assert set(names) == {path.stem for path in CONFIGS.glob("*.yaml")}
    assert all(describe_config(path) for path in names.values())
    assert load_config("strokes-protonet-5w1s") == load_config(CONFIGS / "strokes-protonet-5w1s.yaml")
    assert load_search_config("search-sinusoid-lr").search.metric == "validation/mse"
    Path("sinusoid-maml").write_text("a file of one's own")
    assert find_config("sinusoid-maml") == Path("sinusoid-maml")
    assert find_config("nothing") == Path("nothing")


@pytest.mark.slow
def test_a_wheel_has_the_configurations(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([*command, str(CONFIGS.parent)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        kept = {Path(name).name for name in files.namelist() if name.endswith(".yaml")}
    assert kept == {path.name for path in CONFIGS.glob("*.yaml")}
