import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metatrain import runs
from metatrain.errors import RunOwnedError


def new_run(root: Path) -> runs.Run:
    return runs.create_run(root, "maml", "seed: 3\n", {"python": "3.11"})


def test_a_run_is_found_again_as_it_was_made(tmp_path: Path) -> None:
    made = new_run(tmp_path / "deep" / "runs")
    assert runs.open_run(made.path) == made
    assert made.run_id == made.path.name
    assert made.config.read_text() == "seed: 3\n"
    assert json.loads(made.environment.read_text()) == {"python": "3.11"}
    assert made.checkpoints.is_dir() and made.evaluations.is_dir() and made.plots.is_dir()
    assert json.loads((made.path / "run.json").read_text())["format"] == 1


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    assert len({new_run(tmp_path).path for _ in range(20)}) == 20


def test_the_run_id_stays_when_the_folder_is_moved(tmp_path: Path) -> None:
    made = new_run(tmp_path)
    moved = runs.open_run(made.path.rename(tmp_path / "favourite"))
    assert moved.run_id == made.run_id


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "x" * 101, "two words"])
def test_names_that_are_not_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        runs.create_run(tmp_path, name, "", {})
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"set runs\.root"):
        new_run(tmp_path / "file")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "not a run: it has no run.json"),
        ("{", "run.json is damaged"),
        ("[]", "run.json is damaged"),
        ('{"format": 99, "run_id": "x", "created": "y"}', "has format 99"),
    ],
)
def test_what_is_not_a_run_is_refused_in_one_line(tmp_path: Path, header: str | None, message: str) -> None:
    if header is not None:
        (tmp_path / "run.json").write_text(header)
    with pytest.raises(ValueError, match=message) as refusal:
        runs.open_run(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        runs.open_run(tmp_path / "nothing")


OWNER = """
import sys, time
from pathlib import Path
from metatrain import runs
with runs.lock_run(runs.open_run(Path(sys.argv[1]))):
    print("owned", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "owned\n"
        with pytest.raises(RunOwnedError, match=f"pid {owner.pid}"), runs.lock_run(run):
            pass
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    with runs.lock_run(run):
        assert (run.path / "owner.lock").read_text() == f"{os.getpid()}\n"
    with runs.lock_run(run):
        pass


def test_one_process_does_not_own_a_run_twice(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with runs.lock_run(run), pytest.raises(RunOwnedError), runs.lock_run(run):
        pass


def test_the_environment_says_what_a_person_needs_to_repeat_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = runs.describe_environment()
    assert seen["versions"]["torch"] and seen["cpu"]["count"] >= 1 and seen["cpu"]["model"]
    assert seen["git"] is None
    json.dumps(seen)


def test_the_environment_knows_the_revision_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], check=True)
    clean = runs.describe_environment()["git"]
    assert len(clean["revision"]) == 40 and clean["dirty"] is False
    (tmp_path / "new.py").write_text("")
    assert runs.describe_environment()["git"] == {"revision": clean["revision"], "dirty": True}


def test_replacing_a_file_leaves_nothing_else_behind(tmp_path: Path) -> None:
    for value in (1, 2):
        runs.write_json(tmp_path / "a.json", {"value": value})
    assert json.loads((tmp_path / "a.json").read_text()) == {"value": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
