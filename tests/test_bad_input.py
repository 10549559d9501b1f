"""Every mistake a user can make: one clear line that names what is wrong and the remedy, an exit code, and no trace."""

import hashlib
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import metatrain
from tests.bad_parts import MINE
from tests.bad_requests import RIGHT, SHORT, WRONG, Row
from tests.command_line import CommandLine, Done
from tests.ray_head import clusters_here


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(SHORT))
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.fixture(scope="module")
def finished(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "short.yaml").write_text(yaml.safe_dump(SHORT))
    done = command(folder, "train", "short.yaml")
    assert done.code == 0, done.err
    return next((folder / "runs").iterdir())


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every name below `folder`, with size, time and content; the lock that says who trains is left out."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_size if path.is_file() else 0,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in folder.rglob("*")
        if path.name != "owner.lock"
    }


def told(done: Done, code: int, *says: str, lines: int = 3) -> None:
    """`done` ended with `code`, and said all that in few lines."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) <= lines, done.err
    for words in says:
        assert words in done.err, done.err


def refused(command: CommandLine, folder: Path, *arguments: str, says: tuple[str, ...], seconds: float = 120) -> Done:
    before = tree(folder)
    done = command(folder, *arguments, seconds=seconds)
    told(done, 2, *says)
    assert len(done.err) < 500, done.err
    assert tree(folder) == before
    return done


def rows(table: dict[str, list[Row]]) -> list:
    return [
        pytest.param(
            group,
            row,
            id=f"{group}: {' '.join(row.arguments)[:60]}",
            marks=[pytest.mark.slow] if table is RIGHT else [],
        )
        for group, members in table.items()
        for row in members
    ]


@pytest.mark.parametrize(("group", "row"), rows(WRONG))
def test_a_mistake_is_told_in_a_line_and_leaves_no_trace(command, tmp_path, group, row):
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(SHORT))
    row.given(tmp_path)
    if "auto" in row.arguments[-1] and (found := clusters_here()):
        pytest.skip(f"`auto` would find the Ray that runs on this machine already (pid {found[0]})")
    if group == "usage":  # typer's own form: a frame around the line
        before = tree(tmp_path)
        told(command(tmp_path, *row.arguments), 2, *row.says, lines=7)
        assert tree(tmp_path) == before
    else:
        refused(command, tmp_path, *row.arguments, says=row.says, seconds=row.seconds)


@pytest.mark.parametrize(("group", "row"), rows(RIGHT))
def test_the_same_without_the_mistake_is_accepted(command, tmp_path, group, row):
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(SHORT))
    row.given(tmp_path)
    assert (done := command(tmp_path, *row.arguments)).code == 0, done.err


@pytest.mark.parametrize(
    "setting",
    [
        *("outer.lr=1", "seed=1", "model.width=5", "tasks.train.shots=2", "engine.threads=2"),
        *("evaluation.every=1", "executor.shard_size=2", "executor.gpus_per_worker=1", "runs.name=other"),
    ],
)
def test_a_resume_refuses_what_would_change_the_run(command, run, setting):
    refused(
        command, run.parent, "train", "--resume", "run", setting, says=(setting.partition("=")[0], "start a new run")
    )


@pytest.mark.slow
def test_a_resume_accepts_who_computes_and_who_is_told(command, run):
    settings = ["executor.workers=2", "checkpoint.keep=9", "tracking.uri=sqlite:///m.db", "outer.lr=0.01"]
    config = (run / "config.yaml").read_bytes()
    done = command(run.parent, "train", "--resume", "run", *settings)
    told(done, 0)
    assert (run.parent / "m.db").exists()
    assert (run / "config.yaml").read_bytes() == config, "the run keeps what it began with"


def test_checkpoints_of_another_configuration_are_refused(command, run):
    plain = yaml.safe_load((run / "config.yaml").read_text())
    plain["model"]["width"] = 5
    (run / "config.yaml").write_text(yaml.safe_dump(plain))
    says = ("model", "leave them as the run was trained")
    refused(command, run.parent, "train", "--resume", "run", says=says)
    refused(command, run.parent, "evaluate", "run", says=says)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("model.width=5", "leave them as the run was trained"),
        ("tasks.train.ways=5", "leave them as the run was trained"),
        ("algorithm={name: meta_sgd}", "train meta_sgd with initialize"),
    ],
)
def test_an_evaluation_of_another_model_is_refused(command, run, setting, remedy):
    refused(command, run.parent, "evaluate", "run", setting, says=("model", remedy))


def test_a_damaged_checkpoint_is_passed_over_and_where_all_are_nothing_is_lost(command, run):
    spoil(run / "checkpoints" / "00000002")
    told(command(run.parent, "train", "--resume", "run"), 0, "warning: 00000002", "going on from step 1", lines=9)
    for checkpoint in (run / "checkpoints").iterdir():
        spoil(checkpoint)
    refused(command, run.parent, "train", "--resume", "run", says=("no checkpoint in", "restore one from a copy"))
    refused(command, run.parent, "evaluate", "run", says=("no checkpoint in", "restore one from a copy"))


def spoil(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "state.pt").write_bytes(content)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("run.json", "{", "restore that file"),
        ("run.json", '{"format": 9, "run_id": "a", "created": "b"}', "use the version that wrote it"),
        ("config.yaml", "", "holds no settings"),
        ("config.yaml", "seed: [", "not YAML"),
    ],
)
def test_a_run_folder_that_is_damaged_is_named(command, run, file, content, words):
    (run / file).write_text(content)
    for request in (("train", "--resume", "run"), ("evaluate", "run"), ("report", "run")):
        refused(command, run.parent, *request, says=("run", words))
    with pytest.raises(ValueError, match=words) as one:
        metatrain.load(run)
    assert "\n" not in str(one.value)


def test_a_run_folder_that_cannot_be_written_to(command, run):
    (run / "owner.lock").unlink()
    (run / "owner.lock").mkdir()
    refused(command, run.parent, "train", "--resume", "run", says=("cannot be written to", "copy it"))


@pytest.mark.parametrize("place", ["", "nowhere", "short.yaml"])
def test_loading_what_is_no_run(folder, place):
    with pytest.raises(ValueError, match="use the folder") as one:
        metatrain.load(folder / place)
    assert "\n" not in str(one.value)


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def failing_server() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@contextmanager
def silent_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(("server", "says"), [(failing_server, "answers 500"), (silent_server, "timed out")])
def test_a_tracking_server_that_does_not_do_its_part(command, folder, server, says):
    with server() as port:
        uri = f"tracking.uri=http://127.0.0.1:{port}"
        refused(command, folder, "train", "short.yaml", uri, says=(says, "set tracking.uri"), seconds=15)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://127.0.0.1:1", "set tracking.uri"),
        ("http://me:secret@127.0.0.1:1", "MLFLOW_TRACKING_PASSWORD"),
        ("postgresql://me:secret@127.0.0.1/db", ".pgpass"),
        ("mlruns", "use sqlite:///mlflow.db"),
        ("ftp://host/x", "use sqlite:///mlflow.db"),
        ("sqlite:///short.yaml", "name another file"),
        ("sqlite:///short.yaml/x.db", "in a folder"),
        ("http://", "set tracking.uri"),
        ("http://[", "set tracking.uri"),
    ],
)
def test_a_tracking_uri_that_cannot_work(command, folder, uri, words):
    done = refused(
        command, folder, "train", "short.yaml", f"tracking.uri='{uri}'", says=("tracking.uri", words), seconds=15
    )
    assert "secret" not in done.err


@pytest.mark.parametrize("server", [failing_server, silent_server])
@pytest.mark.parametrize("scheme", ["", pytest.param("ray://", marks=pytest.mark.slow)])
def test_an_address_where_something_else_listens(command, folder, server, scheme):
    with server() as port:
        place = f"executor={{name: ray, address: '{scheme}127.0.0.1:{port}'}}"
        refused(command, folder, "train", "short.yaml", place, says=("executor.address", "ray start"), seconds=15)


def failed(command: CommandLine, folder: Path, *settings: str, says: tuple[str, ...], largest_file: int = -1) -> Path:
    """The run that ended with 1, named, and what is said to go on."""
    done = command(folder, "train", "short.yaml", *settings, largest_file=largest_file)
    lines = [line for line in done.err.splitlines() if not line.startswith(("run ", "training", "failed"))]
    done = done._replace(err="\n".join(lines))
    told(done, 1, "go on with `metatrain train --resume", *says)
    assert len(done.err) < 600, done.err
    (run,) = (folder / "runs").iterdir()
    assert str(run.relative_to(folder)) in done.err
    return run


def method(wrong: str) -> str:
    return f"algorithm={{name: 'mine:Method', wrong: {wrong}, at: 1}}"


RAY = "executor={name: ray, workers: 1}"


def test_a_loss_that_is_no_number(command, folder):
    run = failed(command, folder, method("nan"), says=("step 1", "tasks 2 to 3", "last good checkpoint", "00000001"))
    assert (run / "checkpoints" / "00000001").exists()


@pytest.mark.ray
@pytest.mark.parametrize("place", [[], pytest.param([RAY], marks=pytest.mark.slow)])
def test_code_of_ones_own_that_raises_on_the_way(command, folder, place):
    says = ("train task 2", "at step 1", "ValueError: these tasks are beyond me", "mine.py, line")
    failed(command, folder, method("value"), *place, says=says)


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_that_cannot_start_says_why(command, folder):
    says = ("a worker cannot start", "no licence on this machine")
    failed(command, folder, "model={name: 'mine:OnlyAtHome'}", RAY, says=says)


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(command, folder):
    run = failed(command, folder, "model.width=20", says=("free some space",), largest_file=9000)
    done = command(folder, "train", "--resume", str(run))
    assert done.code == 0, done.err


@pytest.mark.slow
def test_a_disk_that_fills_while_metrics_are_written(command, folder):
    """Checkpoints are small beside the story of many steps."""
    steps = ["outer.steps=150", "evaluation.every=150", "checkpoint.every=40", "model={name: mlp, width: 1, depth: 1}"]
    run = failed(command, folder, *steps, says=("free some space",), largest_file=16_000)
    assert (run / "checkpoints" / "00000040").exists()
    assert command(folder, "train", "--resume", str(run)).code == 0
