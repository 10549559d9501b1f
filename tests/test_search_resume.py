"""A search that was interrupted, killed or robbed of a node ends as if nothing had happened."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from metatrain.config.load import load_config
from tests.searches import TINY_SEARCH, Tracked, journal

pytestmark = pytest.mark.ray

TRACKED = {**TINY_SEARCH, "tracking": {"uri": "sqlite:///mlflow.db"}, "runs": {"name": "tiny"}}


class Searching:
    """Somebody's folder with a search in it."""

    def __init__(self, room: Path) -> None:
        self.room = room
        room.mkdir()
        (room / "tiny.yaml").write_text(yaml.safe_dump(TRACKED))

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "metatrain", "search", *arguments]
        return subprocess.Popen(command, cwd=self.room, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def whole(self, *arguments: str) -> str:
        process = self.begin(*arguments)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out

    @property
    def folder(self) -> Path:
        (folder,) = (self.room / "runs").iterdir()
        return folder

    def events(self) -> int:
        found = list(self.room.glob("runs/*/journal.jsonl"))
        return found[0].read_bytes().count(b"\n") - 1 if found else 0

    def until(self, events: int, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 200
        while self.events() < events:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searching]:
    searching = Searching(tmp_path_factory.mktemp("whole") / "room")
    searching.whole("tiny.yaml")
    yield searching
    shutil.rmtree(searching.room)


def is_same(searching: Searching, undisturbed: Searching) -> None:
    """The same trials, decisions and observations, and each of them once in MLflow."""
    theirs = (undisturbed.folder / "journal.jsonl").read_bytes()
    assert (searching.folder / "journal.jsonl").read_bytes() == theirs
    found, wanted = (Tracked(room / "mlflow.db") for room in (searching.room, undisturbed.room))
    assert found.count == wanted.count == 1 + 6
    assert found.doubled == []
    for trial in range(6):
        mine, other = (f"{one.folder.name}-{trial:04d}" for one in (searching, undisturbed))
        assert found.points[mine, "train/loss"] == wanted.points[other, "train/loss"] > 0
        assert found.runs[mine] == wanted.runs[other]
        assert found.tags[mine]["mlflow.parentRunId"] == found.ids[searching.folder.name]
    assert found.runs[searching.folder.name] == "FINISHED"


def test_a_short_search_ends_with_its_best_trial_and_both_are_tracked(tmp_path):
    searching = Searching(tmp_path / "room")
    searching.whole("tiny.yaml", "search.trials=2", "search.method=random", "outer.steps=5")
    events, folder = journal(searching.folder), searching.folder
    results = {event["trial"]: event["value"] for event in events if event["event"] == "result"}
    best = min(results, key=lambda trial: results[trial])
    (began,) = [event for event in events if event["event"] == "began" and event["trial"] == best]
    assert load_config(folder / "best.yaml").outer.lr == began["configuration"]["outer.lr"]
    assert (folder / "report.html").exists()
    tracked = Tracked(searching.room / "mlflow.db")
    assert tracked.runs == {folder.name: "FINISHED", **{f"{folder.name}-{trial:04d}": "FINISHED" for trial in (0, 1)}}
    assert tracked.points[folder.name, "search/best"] > 0


@pytest.mark.slow
def test_a_search_keeps_what_it_found(undisturbed):
    folder = undisturbed.folder
    trials = sorted(path.name for path in (folder / "trials").iterdir())
    assert trials == [f"{number:04d}" for number in range(6)]
    results = [event for event in journal(folder) if event["event"] == "result"]
    whole = [event for event in results if event["budget"] == 27]
    best = min(whole, key=lambda event: event["value"])
    began = next(e for e in journal(folder) if e["event"] == "began" and e["trial"] == best["trial"])
    config = load_config(folder / "best.yaml")
    assert config.algorithm.inner_lr == began["configuration"]["algorithm.inner_lr"]
    assert config.outer.lr == began["configuration"]["outer.lr"] and config.outer.steps == 27
    assert (folder / "report.html").exists() and (folder / "plots" / "anytime.png").exists()
    tracked = Tracked(undisturbed.room / "mlflow.db")
    parent = tracked.tags[folder.name]
    assert parent["metatrain.search"] == folder.name and "mlflow.parentRunId" not in parent
    kept = undisturbed.room / "mlartifacts" / tracked.ids[folder.name] / "artifacts"
    names = {path.name for path in kept.iterdir()}
    assert names >= {"best.yaml", "config.yaml", "journal.jsonl", "report.html", "tasks.json", "plots"}
    assert {path.name for path in (kept / "plots").iterdir()} >= {"parallel-coordinates.png", "rungs.png"}
    assert tracked.points[folder.name, "search/best"] > 0


@pytest.mark.slow
def test_a_trial_is_the_run_that_train_makes(command, undisturbed, tmp_path):
    """Parameters to the bit, from the configuration that the trial was found with."""
    from metatrain.runs.checkpoints import manifest

    best = (undisturbed.folder / "best.yaml").read_text()
    (tmp_path / "best.yaml").write_text(best)
    done = command(tmp_path, "train", "best.yaml", "tracking.uri=null", "--json", f"runs.root={tmp_path}/runs")
    assert done.code == 0, done.err
    config = load_config(undisturbed.folder / "best.yaml")
    (trial,) = (
        path
        for path in (undisturbed.folder / "trials").iterdir()
        if load_config(path / "config.yaml").outer.lr == config.outer.lr
    )
    assert manifest(trial / "checkpoints", 27)["extra"]["params_sha256"] in done.out


@pytest.mark.slow
@pytest.mark.parametrize(("events", "number"), [(2, signal.SIGINT), (7, signal.SIGTERM), (12, signal.SIGINT)])
def test_interrupted_and_resumed_it_does_as_the_undisturbed(events, number, undisturbed, tmp_path):
    searching = Searching(tmp_path / "room")
    process = searching.begin("tiny.yaml")
    searching.until(events, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert f"metatrain search --resume {searching.folder}" in err
    assert Tracked(searching.room / "mlflow.db").runs[searching.folder.name] == "KILLED"
    searching.whole("--resume", str(searching.folder))
    is_same(searching, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("events", [4, 11])
def test_killed_and_resumed_it_does_as_the_undisturbed(events, undisturbed, tmp_path):
    searching = Searching(tmp_path / "room")
    process = searching.begin("tiny.yaml")
    searching.until(events, process)
    process.kill()
    process.communicate()
    searching.whole("--resume", str(searching.folder))
    is_same(searching, undisturbed)


@pytest.mark.slow
def test_a_search_that_is_over_goes_on_with_more_trials(undisturbed):
    """The last test of this module: it changes the search."""
    before = (undisturbed.folder / "journal.jsonl").read_bytes()
    undisturbed.whole("--resume", str(undisturbed.folder), "search.trials=7")
    after = (undisturbed.folder / "journal.jsonl").read_bytes()
    assert after.startswith(before) and len(journal(undisturbed.folder)) > 6
    assert sum(event["event"] == "began" for event in journal(undisturbed.folder)) == 7
