"""`metatrain evaluate`, in this process: what it prints, what it keeps, what it refuses, how it is interrupted."""

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

from metatrain.cli.evaluation import evaluate_command
from metatrain.tracking.console import ProgressRecorder
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.trainer import new_run, run
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from tests.configurations import tiny

FEW = ["evaluation.tasks=3", "evaluation.baselines=false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    few = "evaluation={tasks: 2, validation_tasks: 2, baselines: false}"
    root = tmp_path_factory.mktemp("evaluated")
    config = tiny("algorithm={name: protonet}", "outer.steps=1", f"runs.root={root}", few)
    home, worker = new_run(config), Worker(config, torch.device("cpu"))
    run(worker, InProcess(worker), CompositeRecorder(), home)
    return home.path


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_however_long_the_overrides_the_name_is_short_and_they_are_inside(trained, capsys):
    overrides = [*FEW, *(f"evaluation.seed={seed}" for seed in range(40))]
    evaluate_command(str(trained), overrides, True)
    table, *_, last = capsys.readouterr().out.splitlines()
    assert table.startswith("trained  test accuracy")
    printed = json.loads(last)
    (file,) = (path for path in (trained / "evaluations").iterdir() if path.stem != "test")
    assert len(file.name) < 20 and file.name.startswith("test-")
    kept = json.loads(file.read_text())
    assert kept["overrides"] == overrides
    assert kept["test"] == printed["test"] and kept["test_inductive"] == printed["test_inductive"]
    assert kept["test"]["transductive"] and not kept["test_inductive"]["transductive"]
    assert kept["test"]["classes"] == 9 and kept["test"]["ci95_classes"] > 0
    assert (trained / "plots" / f"{file.stem}-scores.png").exists()


def test_results_are_printed_before_saving_them_fails(copy, capsys):
    shutil.rmtree(copy / "evaluations")
    (copy / "evaluations").write_text("no folder")
    with pytest.raises(OSError):
        evaluate_command(str(copy), FEW, True)
    table, *_, last = capsys.readouterr().out.splitlines()
    assert table.startswith("trained  test accuracy")
    assert json.loads(last)["test"]["tasks"] == 3


@pytest.mark.parametrize(
    "override",
    [
        "outer.lr=1e-3",
        "outer={lr: 0.1}",
        "outer.groups.model.lr=1",
        "runs.name=other",
        "checkpoint.every=9",
        "tracking.every=2",
        "evaluation.every=7",
        "evaluation.validation_tasks=9",
    ],
)
def test_settings_without_effect_on_an_evaluation_are_refused(trained, override):
    key = override.split("=")[0]
    with pytest.raises(ValueError, match=rf"^{key}[.a-z]*: has no effect on an evaluation: remove it"):
        evaluate_command(str(trained), [*FEW, override], False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_evaluation_between_shards_without_a_result(trained, capsys, number):
    before = sorted((trained / "evaluations").iterdir())
    handler = signal.getsignal(number)

    def kill_once_it_is_heeded():
        while signal.getsignal(number) is handler:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    killer = threading.Thread(target=kill_once_it_is_heeded)
    killer.start()
    with pytest.raises(typer.Exit) as ended:
        evaluate_command(str(trained), ["evaluation.tasks=100000", "evaluation.baselines=false"], False)
    killer.join()
    assert ended.value.exit_code == 128 + number
    said = capsys.readouterr()
    assert said.out == ""
    first, last = said.err.splitlines()[0], said.err.splitlines()[-1]
    assert first.startswith("stopping after this step or shard of tasks; ")
    assert last.startswith("stopped testing trained after ") and last.endswith(": evaluate again")
    assert sorted((trained / "evaluations").iterdir()) == before
    assert signal.getsignal(number) is handler


def test_a_signal_among_the_baselines_prints_the_results_so_far(trained, capsys, monkeypatch):
    shown = ProgressRecorder.progress

    def interrupt_the_untrained(recorder, stage, done, total):
        shown(recorder, stage, done, total)
        if stage == "testing untrained" and done:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressRecorder, "progress", interrupt_the_untrained)
    with pytest.raises(typer.Exit) as ended:
        evaluate_command(str(trained), ["evaluation.tasks=20", "evaluation.baselines=true"], False)
    assert ended.value.exit_code == 130
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["trained", "trained"]
    assert said.err.splitlines()[-1].startswith("stopped testing untrained after ")
