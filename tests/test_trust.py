"""Runs of somebody else: their code is not imported and their addresses get no login, unless the user says so."""

import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

import metatrain
from metatrain import runs
from metatrain.cli import app
from metatrain.runs.messages import resume_command
from metatrain.runs.signature import is_own
from metatrain.trust import find_code
from metatrain.yaml_config import load_yaml
from tests.configurations import TINY
from tests.searches import tiny_search
from tune.search_dir import open_search

V01 = Path(__file__).parent / "fixtures" / "v0.1"
FEW = ("evaluation.tasks=2", "evaluation.baselines=false")


def command(*arguments: object) -> Result:
    """Run the command line in this process; what `main` would print comes as the exception."""
    return CliRunner().invoke(app, [str(one) for one in arguments])


def said(result: Result) -> str:
    assert isinstance(result.exception, (ValueError, OSError)), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def edit(run: Path, key: str, value: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    section, name = key.split(".")
    if section == "model":  # an import path takes none of the settings of conv4
        config[section] = {}
    config[section][name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a module of a stranger writes to when it is imported; this and the module's are the current one."""
    (tmp_path / "stranger.py").write_text("from pathlib import Path\nPath('imported').touch()\ndef Thing(**_): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("stranger", None)
    return tmp_path / "imported"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A finished run that this user did not make."""
    return Path(shutil.copytree(V01 / "run-finished", tmp_path / "theirs"))


CODE = [("model.name", "stranger:Thing"), ("algorithm.name", "stranger:Thing"), ("tasks.name", "stranger:Thing")]


@pytest.mark.parametrize(("key", "name"), [*CODE, ("model.name", "os:system")])
def test_code_that_a_strangers_run_names_is_listed_and_not_imported(theirs, marks, key, name):
    edit(theirs, key, name)
    refusing = [
        ("evaluate", theirs),
        ("train", "--resume", theirs),
        ("train", theirs / "config.yaml"),
        ("config", "show", theirs / "config.yaml"),
    ]
    for arguments in refusing:
        text = said(command(*arguments))
        assert f"names code to import ({key}: {name})" in text and "add --trust" in text, arguments
    with pytest.raises(ValueError, match="trust=True in Python"):
        metatrain.load(theirs)
    assert command("status", theirs).exit_code == 0
    assert key != "tasks.name" or command("report", theirs).exit_code == 0
    assert not marks.exists()


@pytest.mark.parametrize(("key", "name"), CODE)
def test_with_trust_it_is_imported(theirs, marks, key, name):
    edit(theirs, key, name)
    with pytest.raises((ValueError, TypeError)):  # it is no model, algorithm or tasks
        metatrain.load(theirs, trust=True)
    assert marks.exists()


def test_a_configuration_that_the_user_names_may_import(tmp_path, marks):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TINY | {"algorithm": {"name": "stranger:Thing"}}))
    assert "is not a dataclass" in said(command("config", "show", tmp_path / "mine.yaml"))
    assert marks.exists()


def test_a_run_is_ones_own_by_its_signature(tmp_path, monkeypatch):
    text = yaml.safe_dump(TINY | {"model": {"name": "mine:Net"}})
    home = runs.create_run(tmp_path, "x", text, {})
    key = Path(metatrain.runs.signature.os.environ["METATRAIN_STATE"]) / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert is_own(home.path) and "--trust" not in resume_command(home)
    moved = Path(shutil.copytree(home.path, tmp_path / "moved"))
    assert is_own(moved)
    (moved / "config.yaml").write_text(text.replace("mine:Net", "os:system"))
    assert not is_own(moved) and resume_command(runs.open_run(moved)).endswith(" --trust`")
    monkeypatch.setenv("METATRAIN_STATE", str(tmp_path / "of another user"))
    assert not is_own(home.path)
    assert not (tmp_path / "of another user").exists()


def test_a_user_without_a_place_for_a_key_has_no_own_runs(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("METATRAIN_STATE", str(tmp_path / "file" / "below"))
    home = runs.create_run(tmp_path, "x", yaml.safe_dump(TINY), {})
    assert not is_own(home.path)


def test_a_searchs_code_is_found_however_it_is_written(tmp_path):
    plain = tiny_search().to_plain()
    plain["space"] = {"model": {"from": "choice({name: a.b:Net}, {name: conv4})"}, "algorithm.name": ["c:D", "maml"]}
    plain["search"]["first"] = [{"model.name": "e:F"}]
    assert {name for _, name in find_code(plain)} == {"a.b:Net", "c:D", "e:F"}
    (tmp_path / "theirs").mkdir()
    home = runs.create_run(tmp_path, "s", yaml.safe_dump(plain), {})
    (home.path / "signature").unlink()
    with pytest.raises(ValueError, match=r"names code to import \(space.*a\.b:Net"):
        open_search(str(home.path))


def test_a_file_beside_an_own_configuration_names_no_other_code(tmp_path, marks):
    home = runs.create_run(tmp_path, "s", yaml.safe_dump(TINY | {"algorithm": {"name": "mine:A"}}), {})
    for name, text in (("mine:A", "cannot import 'mine'"), ("stranger:Thing", "names code to import")):
        (home.path / "best.yaml").write_text(yaml.safe_dump(TINY | {"algorithm": {"name": name}}))
        assert text in said(command("config", "show", home.path / "best.yaml"))
    assert not marks.exists()


def test_a_trial_names_no_code_that_its_search_does_not(marks):
    with pytest.raises(ValueError, match="names code that its search does not"):
        tiny_search().trial_config({"algorithm": {"name": "stranger:Thing"}})
    assert not marks.exists()


@pytest.fixture
def listener() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a stranger, and what was sent there."""
    got: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                got.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", got
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_a_login_does_not_go_to_an_address_that_a_strangers_run_names(theirs, listener, monkeypatch) -> None:
    address, got = listener
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    edit(theirs, "tracking.uri", address)
    assert command("status", theirs).exit_code == 0
    assert command("report", theirs).exit_code == 0
    for arguments in (("train", "--resume", theirs), ("report", theirs, "--record")):
        text = said(command(*arguments))
        assert f"tracking.uri ({address})" in text and "add --trust" in text
    assert got == []


def test_an_evaluation_is_not_recorded_where_a_strangers_run_says(theirs, tmp_path):
    edit(theirs, "tracking.uri", f"sqlite:///{tmp_path}/made/mlflow.db")
    done = command("evaluate", theirs, *FEW)
    assert done.exit_code == 0
    assert "not recorded in MLflow, as" in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("key", "value", "more"),
    [
        ("executor.address", "203.0.113.1:6379", ["executor.name=ray"]),
        ("tracking.uri", "postgresql://203.0.113.1/x", []),
    ],
)
def test_a_resume_sends_nothing_to_an_address_that_the_user_has_not_chosen(theirs, monkeypatch, key, value, more):
    edit(theirs, key, value)
    assert f"{key} ({value})" in said(command("train", "--resume", theirs, *more))
    variable = {"executor.address": "RAY_ADDRESS", "tracking.uri": "MLFLOW_TRACKING_URI"}[key]
    monkeypatch.setenv(variable, value)
    plain = load_yaml(theirs / "config.yaml", "a run")
    found = metatrain.trust.unchosen_places(metatrain.yaml_config.flatten(plain) | {"executor.name": "ray"}, [])
    assert key not in found
