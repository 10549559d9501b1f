import http.server
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metatrain.tracking import mlflow_connection, mlflow_recorder
from metatrain.tracking.mlflow_connection import TrackingError
from metatrain.tracking.mlflow_recorder import MLflowRecorder

PARAMS: dict[str, mlflow_recorder.Value] = {
    "outer.lr": 1e-3,
    "tasks.root": None,
    "algorithm.first_order": False,
    "seed": 3,
}


def recorder(uri: str, **changes: Any) -> MLflowRecorder:
    settings: dict[str, Any] = {"experiment": "spine", "run_id": "20260101-maml-abc123", "params": PARAMS}
    return MLflowRecorder(uri, **{**settings, "tags": {"algorithm": "maml"}, **changes})


def the_run(uri: str) -> Any:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("spine")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    return runs[0]


def steps(uri: str, key: str) -> list[int]:
    return [metric.step for metric in MlflowClient(uri).get_metric_history(the_run(uri).info.run_id, key)]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables without a run: making them takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def new_uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path, new_uri: str) -> str:
    shutil.copy(empty_database, tmp_path)
    return new_uri


def test_a_run_is_recorded_whole(tmp_path: Path, uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    shown = recorder(uri)
    shown.start(0, 3)
    assert the_run(uri).info.status == "RUNNING"
    for step in (1, 2, 3):
        shown.record(step, {"train/loss": 1 / step, "train/accuracy": math.nan if step == 2 else 0.5})
    shown.event(3, "checkpoint", "saved 00000003")
    (tmp_path / "curves.png").write_bytes(b"png")
    shown.artifact(tmp_path / "curves.png", "plots")
    shown.artifact(tmp_path / "curves.png")
    shown.close("finished")
    shown.close("finished")
    run = the_run(uri)
    assert run.info.status == "FINISHED" and run.info.run_name == "20260101-maml-abc123"
    assert run.data.params == {
        "outer.lr": "0.001",
        "tasks.root": "null",
        "algorithm.first_order": "false",
        "seed": "3",
    }
    assert run.data.tags["algorithm"] == "maml" and run.data.tags["metatrain.run_id"] == "20260101-maml-abc123"
    assert run.data.tags["event.checkpoint"] == "step 3: saved 00000003"
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert steps(uri, "train/accuracy") == [1, 2, 3]
    artifacts = tmp_path / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "plots" / "curves.png").exists() and (artifacts / "curves.png").exists()
    assert not (tmp_path / "mlruns").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert capfd.readouterr() == ("", ""), "MLflow and alembic stay silent"


def test_a_resume_goes_on_in_the_same_run_without_doubling_a_point(uri: str) -> None:
    first = recorder(uri, params={**PARAMS, "outer.steps": 7})
    first.start(0, 10)
    for step in range(1, 8):
        first.record(step, {"train/loss": float(step)})
    first.record(5, {"validation/loss": 5.0})
    first.close("interrupted")
    assert the_run(uri).info.status == "KILLED"
    second = recorder(uri, params={**PARAMS, "seed": 4, "outer.steps": 10, "late": 1}, tags={"algorithm": "other"})
    second.start(4, 10)
    assert the_run(uri).info.status == "RUNNING"
    for step in range(5, 11):
        second.record(step, {"train/loss": float(step)})
        if step in (5, 10):
            second.record(step, {"validation/loss": float(step)})
    second.close("failed")
    run = the_run(uri)
    assert run.info.status == "FAILED"
    assert [run.data.params[key] for key in ("seed", "outer.steps", "late")] == ["3", "7", "1"]
    assert run.data.tags[mlflow_recorder.EXTENDED_STEPS] == "10", "parameters never change"
    assert run.data.tags["algorithm"] == "maml"
    assert steps(uri, "train/loss") == list(range(1, 11))
    assert steps(uri, "validation/loss") == [5, 10]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("calls", range(4))
def test_dying_between_two_batches_of_one_flush_loses_and_doubles_nothing(
    uri: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_recorder, "METRICS_PER_CALL", 7)
    first = recorder(uri, send_seconds=1e9)
    first.start(0, 20)
    send, sent = first._client.log_batch, 0

    def dies(*args: Any, **kwargs: Any) -> None:
        nonlocal sent
        if sent == calls:
            raise KilledError
        sent += 1
        send(*args, **kwargs)

    monkeypatch.setattr(first._client, "log_batch", dies)
    everything = [(step, {"a": 1.0, "b": 2.0, **({"c": 3.0} if step % 4 == 0 else {})}) for step in range(1, 21)]
    for step, metrics in everything:
        first.record(step, metrics)
    with pytest.raises(KilledError):
        first.flush()
    second = recorder(uri)
    second.start(0, 20)
    for step, metrics in everything:
        second.record(step, metrics)
    second.close("finished")
    assert steps(uri, "a") == steps(uri, "b") == list(range(1, 21))
    assert steps(uri, "c") == [4, 8, 12, 16, 20]


def test_what_a_failed_call_left_is_sent_by_the_next(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    shown = recorder(uri, send_seconds=1e9)
    shown.start(0, 2)
    shown.record(1, {"a": 1.0})

    def fails(*_: Any, **__: Any) -> None:
        raise MlflowException("the disk\nis full")

    with monkeypatch.context() as broken:
        broken.setattr(shown._client, "log_batch", fails)
        with pytest.raises(TrackingError, match=r"the disk is full.*--resume") as told:
            shown.flush()
    assert "\n" not in str(told.value)
    shown.close("finished")
    assert steps(uri, "a") == [1]


def test_points_are_sent_every_few_seconds_without_a_flush(uri: str) -> None:
    shown = recorder(uri, send_seconds=0.0)
    shown.start(0, 2)
    shown.record(1, {"a": 1.0})
    assert steps(uri, "a") == [1]
    shown.close("finished")


def test_many_params_and_metrics_fit_into_calls(uri: str) -> None:
    shown = recorder(uri, params={f"key{number}": number for number in range(250)}, send_seconds=1e9)
    shown.start(0, 2500)
    for step in range(1, 2501):
        shown.record(step, {"a": 0.5})
    shown.close("finished")
    assert len(the_run(uri).data.params) == 250
    assert steps(uri, "a") == list(range(1, 2501))


# One process imports MLflow, and its children record: each is killed at an instant of the parent's choosing.
KILLED_AT_RANDOM = """
import os, random, signal, sys, time
import mlflow
from metatrain.tracking import mlflow_recorder
from metatrain.tracking.mlflow_recorder import MLflowRecorder

uri, kills = sys.argv[1], int(sys.argv[2])

def train(steps):
    shown = MLflowRecorder(uri, "spine", "r", {f"p{i}": i for i in range(120)}, {}, send_seconds=0.0)
    shown.start(0, steps)
    mlflow_recorder.METRICS_PER_CALL = 3
    for step in range(1, steps + 1):
        shown.record(step, {"a": step, "b": step, **({"c": step} if step % 10 == 0 else {})})
    shown.close("finished")

def child(steps):
    pid = os.fork()
    if pid == 0:
        train(steps)
        os._exit(0)
    return pid

chance = random.Random(2)
killed = 0
for kill in range(kills):
    pid = child(10**6)
    time.sleep(chance.uniform(0.0, 2.5))
    os.kill(pid, signal.SIGKILL)
    killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
last = child(500)
assert os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]) == 0
print(killed)
"""


@pytest.mark.slow
def test_killed_at_random_instants_there_is_one_run_with_each_point_once(new_uri: str) -> None:
    arguments = [sys.executable, "-c", KILLED_AT_RANDOM, new_uri, "6"]
    environment = {**os.environ, **mlflow_recorder.QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment, check=True)
    assert done.stdout == "6\n", "each child was alive when it was killed"
    for key in ("a", "b"):
        assert steps(new_uri, key) == list(range(1, len(steps(new_uri, key)) + 1)) and len(steps(new_uri, key)) >= 500
    assert steps(new_uri, "c") == list(range(10, max(steps(new_uri, "c")) + 1, 10))
    assert the_run(new_uri).data.params == {f"p{number}": str(number) for number in range(120)}
    assert the_run(new_uri).info.status == "FINISHED"


def test_a_database_whose_making_was_cut_short_is_not_there(new_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as killed:
        killed.setattr(MlflowClient, "search_experiments", dies)
        with pytest.raises(KilledError):
            recorder(new_uri).start(0, 1)
    assert not Path(new_uri.removeprefix("sqlite:///")).exists()
    shown = recorder(new_uri)
    shown.start(0, 1)
    shown.close("finished")
    assert the_run(new_uri).info.status == "FINISHED"


def test_a_relative_database_stays_where_it_was_when_the_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shown = recorder("sqlite:///deep/mlflow.db")
    assert shown.uri == f"sqlite:///{tmp_path}/here/deep/mlflow.db"
    monkeypatch.chdir(tmp_path / "there")
    shown.start(0, 1)
    (tmp_path / "note.txt").write_text("")
    shown.artifact(tmp_path / "note.txt")
    shown.close("finished")
    assert list((tmp_path / "there").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "here" / "deep").iterdir()) == ["mlartifacts", "mlflow.db"]


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "./mlruns", "sqlite://", "sqlite:///:memory:"])
def test_uris_that_cannot_work_are_refused_with_one_that_does(uri: str) -> None:
    with pytest.raises(ValueError, match=r"use sqlite:///mlflow\.db"):
        recorder(uri)


def test_an_experiment_that_was_deleted_is_named(uri: str) -> None:
    first = recorder(uri)
    first.start(0, 1)
    first.close("finished")
    MlflowClient(uri).delete_experiment(the_run(uri).info.experiment_id)
    with pytest.raises(ValueError, match="'spine' was deleted: restore it"):
        recorder(uri).start(0, 1)


def test_a_recorder_that_never_started_closes_quietly(new_uri: str, tmp_path: Path) -> None:
    recorder(new_uri).close("failed")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def answering(code: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(TrackingError, match=r"does not answer.*start it, or set tracking\.uri") as told:
        recorder(f"http://me:secret@127.0.0.1:{free_port()}").start(0, 1)
    assert time.monotonic() - began < 5
    assert "secret" not in str(told.value) and "\n" not in str(told.value)


def test_a_server_that_fails_is_told_at_once() -> None:
    with answering(500) as address, pytest.raises(TrackingError, match="answers 500"):
        recorder(address).start(0, 1)


def test_a_server_that_wants_a_login_is_told_so_unless_somebody_else_logs_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with answering(401) as address:
        with pytest.raises(ValueError, match="wants a login"):
            mlflow_connection.preflight(address)
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow" / "credentials").write_text("[mlflow]\nmlflow_tracking_username = ada\n")
        mlflow_connection.preflight(address)  # MLflow reads it


def test_a_server_that_keeps_silent_is_given_up() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(TrackingError, match="does not answer"):
            mlflow_connection.preflight(f"http://127.0.0.1:{listener.getsockname()[1]}", seconds=0.2)


@contextmanager
def serving(folder: Path, port: int | None = None) -> Iterator[str]:
    """A real server, in a session of its own since it has workers, and all of that session ended with it."""
    port = port or free_port()
    options = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/served"]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *options]
    environment = {**os.environ, **mlflow_recorder.QUIET}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(address, server)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def wait_until_healthy(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("the server did not become healthy within two minutes")


def test_a_real_server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "curves.png").write_bytes(b"png")
    with serving(tmp_path) as address:
        for first, last in ((0, 7), (4, 10)):
            shown = recorder(address, send_seconds=1e9)
            shown.start(first, 10)
            for step in range(first + 1, last + 1):
                shown.record(step, {"train/loss": float(step)})
            shown.event(last, "checkpoint", "saved")
            shown.artifact(tmp_path / "curves.png", "plots")
            shown.close("finished")
        run = the_run(address)
        assert steps(address, "train/loss") == list(range(1, 11))
        assert run.info.status == "FINISHED" and run.data.tags["event.checkpoint"] == "step 10: saved"
        listed = MlflowClient(address).list_artifacts(run.info.run_id, "plots")
        assert [artifact.path for artifact in listed] == ["plots/curves.png"]
    assert capfd.readouterr() == ("", "")


def test_the_children_of_a_large_search_are_found_page_by_page(new_uri, monkeypatch):
    monkeypatch.setattr(mlflow_recorder, "RUNS_PER_CALL", 2)
    parent = recorder(new_uri, run_id="search")
    parent.start(0, 0)
    client = MlflowClient(new_uri)
    experiment = client.get_experiment_by_name("spine")
    names = [f"trial-{number}" for number in range(5)]
    tags = {"mlflow.parentRunId": parent.mlflow_run_id}
    for name in names:
        client.create_run(experiment.experiment_id, tags={**tags, mlflow_recorder.RUN_ID_TAG: name}, run_name=name)
    parent.set_child_statuses(dict.fromkeys(names, "finished"))
    found = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    assert sorted(run.info.run_name for run in found) == names
