"""`metatrain status FOLDER`: the runs of a folder, of which only those that are shown are read."""

import json
import os
from pathlib import Path

import pytest

from metatrain import runs
from metatrain.cli import run_status
from metatrain.cli.jobs import status_command

COUNT = 30


@pytest.fixture
def made(tmp_path: Path) -> list[runs.Run]:
    """Runs of a folder, the oldest first."""
    homes = [runs.create_run(tmp_path, f"number-{number}", "outer: {steps: 9}\n", {}) for number in range(COUNT)]
    for number, home in enumerate(homes):
        line = {"step": number + 1, "time": 1.0, "train/loss": 0.5}
        home.metrics.write_text(json.dumps(line) + "\n")
        os.utime(home.path / "run.json", (1e9 + number, 1e9 + number))
    return homes


def names(statuses: list[dict]) -> list[str]:
    return [Path(one["name"]).name for one in statuses]


def test_the_newest_runs_are_read_and_no_others(made, monkeypatch, capsys):
    read = []
    real = run_status.read_metrics_file
    monkeypatch.setattr(run_status, "read_metrics_file", lambda path, steps: read.append(path) or real(path, steps))
    status_command(str(made[0].path.parent), None, None, None, as_json=False, most=4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == [home.where for home in made[:-5:-1]]
    assert "NOT RUNNING  30/9" in lines[0]
    assert lines[4:] == [f"{COUNT - 4} older runs are not shown: --most {COUNT} shows all"]
    assert read == [home.metrics for home in made[:-5:-1]]


def test_a_run_that_runs_is_shown_however_old_it_is(made):
    with runs.lock_run(made[2]), runs.lock_run(made[5]):
        statuses, others = run_status.folder_status(made[0].path.parent, 1)
    assert names(statuses) == [made[5].run_id, made[2].run_id]
    assert all(one["status"].startswith("RUNNING") for one in statuses)
    assert others == COUNT - 2


def test_a_damaged_run_hides_no_other(made, capsys):
    made[-1].config.write_text("outer: [")
    status_command(str(made[0].path.parent), None, None, None, as_json=True, most=2)
    first, second = json.loads(capsys.readouterr().out)
    assert (first["status"], second["status"]) == ("UNREADABLE", "NOT RUNNING")
    assert "config.yaml" in first["line"]


def test_a_run_and_a_folder_without_runs_are_no_folders_of_runs(made, tmp_path):
    assert run_status.holds_runs(tmp_path)
    assert not run_status.holds_runs(made[0].path)
    assert not run_status.holds_runs(made[0].checkpoints)
    assert not run_status.holds_runs(tmp_path / "nowhere")
