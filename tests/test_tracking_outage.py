"""MLflow goes away in the middle of a run: training goes on, and MLflow has every point once when it is back."""

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from metatrain.setup import recorders
from metatrain.tracking import retrying
from metatrain.tracking.jsonl import CompositeRecorder, JsonlRecorder, read_lines
from metatrain.tracking.mlflow_connection import TrackingError, check_writable
from metatrain.tracking.mlflow_recorder import MLflowRecorder, open_client
from metatrain.tracking.retrying import RetryingRecorder
from metatrain.trainer import RunResult, new_run, run
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from metatrain.types import Recorder
from tests.configurations import tiny
from tests.test_mlflow import serving, steps, the_run


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAIT_FIRST", "WAIT_LATER", "WAIT_LAST"):
        monkeypatch.setattr(retrying, name, 0.1)
    for name in ("PAUSE_LEAST", "PAUSE_MOST"):
        monkeypatch.setattr(retrying, name, 0.0)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Somebody else's connection holds the database."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


class Notes(list[str]):
    def __call__(self, step: int, kind: str, text: str) -> None:
        self.append(f"{step}: {kind}: {text}")


def recording(folder: Path, uri: str, notes: Notes, send_seconds: float = 1e9) -> CompositeRecorder:
    inner = MLflowRecorder(uri, "spine", "r", {"seed": 3}, {}, send_seconds=send_seconds)
    return CompositeRecorder(
        [JsonlRecorder(folder / "metrics.jsonl"), RetryingRecorder(inner, folder / "metrics.jsonl", "runs/r", notes)]
    )


def train(recorder: Recorder, first: int, last: int) -> None:
    for step in range(first, last + 1):
        recorder.record(step, {"a": float(step), **({"b": 1.0} if step % 2 == 0 else {})})


def test_a_locked_database_is_survived_and_told_once(tmp_path: Path, uri: str) -> None:
    notes = Notes()
    recorder = recording(tmp_path, uri, notes)
    recorder.start(0, 30)
    train(recorder, 1, 10)
    (tmp_path / "curves.png").write_bytes(b"png")
    began = time.monotonic()
    with locked(uri):
        train(recorder, 11, 15)
        recorder.event(15, "checkpoint", "saved")
        recorder.artifact(tmp_path / "curves.png", "plots")
        recorder.flush()
        train(recorder, 16, 20)
    assert time.monotonic() - began < 5
    train(recorder, 21, 30)
    recorder.close("finished")
    assert len(notes) == 2, notes
    assert "11: tracking: MLflow does not answer" in notes[0] and "database is locked" in notes[0]
    assert "records are kept in runs/r and sent when it does" in notes[0]
    assert "21: tracking: MLflow answers again" in notes[1]
    assert steps(uri, "a") == list(range(1, 31)) and steps(uri, "b") == list(range(2, 31, 2))
    found = the_run(uri)
    assert found.info.status == "FINISHED" and found.data.tags["event.checkpoint"] == "step 15: saved"
    assert (tmp_path / "mlartifacts" / found.info.run_id / "artifacts" / "plots" / "curves.png").exists()


def test_what_was_away_to_the_end_is_sent_by_a_resume(tmp_path: Path, uri: str) -> None:
    notes = Notes()
    recorder = recording(tmp_path, uri, notes)
    recorder.start(0, 20)
    train(recorder, 1, 10)
    with locked(uri):
        train(recorder, 11, 20)
        recorder.close("finished")
    assert len(notes) == 2 and "`metatrain train --resume runs/r` sends them" in notes[1]
    assert max(steps(uri, "a")) == 10 and the_run(uri).info.status == "RUNNING"
    moment = next(line["time"] for line in read_lines(tmp_path / "metrics.jsonl") if line["step"] == 15)
    resumed = recording(tmp_path, uri, notes)
    resumed.start(20, 20)
    resumed.close("finished")
    assert steps(uri, "a") == list(range(1, 21)) and steps(uri, "b") == list(range(2, 21, 2))
    assert the_run(uri).info.status == "FINISHED" and len(notes) == 2
    history = MlflowClient(uri).get_metric_history(the_run(uri).info.run_id, "a")
    assert abs(next(point.timestamp for point in history if point.step == 15) / 1000 - moment) < 0.01


def test_a_flush_that_fails_half_way_doubles_nothing(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    recorder = recording(tmp_path, uri, notes)
    recorder.start(0, 6)
    retried: Any = recorder.recorders[1]
    send = retried._inner._client.log_batch

    def takes_and_fails(*given: Any, **named: Any) -> None:
        send(*given, **named)
        raise OSError("the answer was lost")

    with monkeypatch.context() as broken:
        broken.setattr(retried._inner._client, "log_batch", takes_and_fails)
        train(recorder, 1, 1)
    train(recorder, 2, 6)
    recorder.close("finished")
    assert steps(uri, "a") == list(range(1, 7)) and len(notes) == 2


def test_a_database_that_is_locked_from_the_start_is_told_before_there_is_a_run(tmp_path: Path, uri: str) -> None:
    with locked(uri), pytest.raises(TrackingError, match=r"mlflow\.db: database is locked: close what holds it"):
        check_writable(uri, 0.1)
    check_writable(uri, 0.1)


def whole_run(uri: str | None, root: Path, stop: Any = lambda: False) -> RunResult:
    config = tiny(f"runs.root={root}", "engine.compile=off", "evaluation.baselines=false", "evaluation.tasks=2")
    worker = Worker(replace(config, tracking=replace(config.tracking, uri=uri)), torch.device("cpu"))
    home = new_run(worker.config)
    recorder = recorders(worker.config, home)
    result = run(worker, InProcess(worker), recorder, home, stop)
    recorder.close("finished")
    return result


def test_a_whole_run_with_a_locked_database_in_the_middle_ends_well(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = 0
    other = None

    def stop() -> bool:
        nonlocal asked, other
        asked += 1
        if asked == 2:
            other = locked(uri)
            other.__enter__()
        if asked == 4 and other is not None:
            other.__exit__(None, None, None)
        return False

    result = whole_run(uri, tmp_path / "runs", stop)
    assert result.finished and result.steps == 6
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'metatrain'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert [m.step for m in client.get_metric_history(found.info.run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert found.info.status == "FINISHED" and "test/accuracy" in found.data.metrics
    assert {"config.yaml", "evaluations", "plots", "checkpoints"} <= {
        file.path for file in client.list_artifacts(found.info.run_id)
    }
    events = [line for line in read_lines(Path(result.run_dir) / "metrics.jsonl") if line.get("event") == "tracking"]
    assert len(events) == 2 and "is kept" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    notes = Notes()
    with serving(tmp_path) as address:
        recorder = recording(tmp_path, address, notes)
        recorder.start(0, 30)
        train(recorder, 1, 10)
        port = int(address.rpartition(":")[2])
    began = time.monotonic()
    train(recorder, 11, 20)
    recorder.flush()
    assert time.monotonic() - began < 10
    with serving(tmp_path, port):
        train(recorder, 21, 30)
        recorder.close("finished")
        assert steps(address, "a") == list(range(1, 31)) and the_run(address).info.status == "FINISHED"
    assert len(notes) == 2 and "does not answer" in notes[0] and "answers again" in notes[1]


@pytest.mark.slow
@pytest.mark.alone
def test_a_real_server_that_stands_still_is_waited_for_briefly(tmp_path: Path) -> None:
    notes = Notes()
    with serving(tmp_path) as address:
        recorder = recording(tmp_path, address, notes)
        recorder.start(0, 20)
        train(recorder, 1, 5)
        server = next(iter_servers(tmp_path))
        os.killpg(server, signal.SIGSTOP)
        try:
            began = time.monotonic()
            train(recorder, 6, 10)
            assert time.monotonic() - began < 5
        finally:
            os.killpg(server, signal.SIGCONT)
        time.sleep(1)
        train(recorder, 11, 20)
        recorder.close("finished")
        assert steps(address, "a") == list(range(1, 21))


def iter_servers(folder: Path) -> Iterator[int]:
    """The process groups whose command names `folder`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                if f"{folder}/server.db".encode() in command:
                    yield os.getpgid(int(entry.name))
            except OSError:
                continue
