"""The progress of a run: its line for people, its JSON line in a job's log, and what a run's own records say of it."""

import io
import json
import math
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatrain.tracking import console, jsonl
from metatrain.tracking.console import ProgressRecorder
from metatrain.tracking.jsonl import JsonlRecorder
from metatrain.tracking.status_line import (
    JSON_PREFIX,
    RunProgress,
    Stage,
    add_stage,
    drop_status_lines,
    merge_metrics,
    read_last_status,
    read_metrics_file,
)

ACCURACY = {
    "train/loss": 0.31,
    "train/accuracy": 0.892,
    "validation/accuracy": 0.951,
    "validation/ci95": 0.004,
    "best/accuracy": 0.953,
    "best/ci95": 0.0041,
    "best/step": 100,
    "time/tasks_per_second": 45.0,
    "cluster/workers": 2.0,
}


def test_the_line_for_people() -> None:
    assert RunProgress(120, 500, 12.0, 38.0, ACCURACY).format() == (
        "120/500  0:12, 0:38 left · train loss 0.310, 89.20 % · validation 95.10 ± 0.40 % · best 95.30 ± 0.41 % at "
        "step 100 · 45 tasks/s · 2 workers"
    )
    assert RunProgress(7, 9, 0.0).format() == "7/9  0:00, ? left"


@given(seconds_left=st.one_of(st.none(), st.integers(0, 10**6)), loss=st.floats(allow_nan=False, allow_infinity=False))
def test_the_last_json_line_of_a_log_reads_back(seconds_left, loss) -> None:
    progress = RunProgress(120, 500, 12.0, seconds_left, ACCURACY | {"train/loss": loss})
    log = [RunProgress(1, 500, 0.1).as_json_line(), progress.as_json_line(), "training 121/500  0:13, 0:37 left"]
    assert read_last_status(log) == progress


def test_a_log_without_json_lines_has_no_status() -> None:
    assert read_last_status(["training 1/9  0:01, 0:08 left", "metatrain: tasks.root: missing"]) is None


def test_a_loss_that_is_no_number_is_null_and_left_out() -> None:
    progress = RunProgress(1, 2, 1.0, None, {"train/loss": math.nan, "cluster/workers": 2.0})
    assert progress.as_dict()["train/loss"] is None
    assert read_last_status([progress.as_json_line()]).metrics == {"cluster/workers": 2.0}


@given(st.lists(st.sampled_from(["a", "metatrain", "-status", " {", "\n", "\r\n"]), max_size=30))
def test_json_lines_are_dropped_however_a_log_is_cut(pieces: list[str]) -> None:
    kept = [line for line in "".join(pieces).split("\n") if not line.startswith(JSON_PREFIX)]
    shown = "".join(drop_status_lines(pieces))
    assert shown.rstrip("\n") == "\n".join(kept).rstrip("\n")
    assert not any(line.startswith(JSON_PREFIX) for line in shown.split("\n"))


@pytest.mark.parametrize("job", ["a-20260101", None])
def test_a_job_prints_a_json_line_with_each_line(monkeypatch: pytest.MonkeyPatch, job: str | None) -> None:
    monkeypatch.delenv("METATRAIN_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("METATRAIN_JOB_ID", job)
    stream = io.StringIO()
    recorder = ProgressRecorder(stream)
    recorder.start(0, 9)
    recorder.record(1, {"train/loss": 0.5})
    recorder.record(2, {"train/loss": 0.25, "validation/accuracy": 0.5})
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("training 2/9  ")
    assert len(lines) == (2 if job else 1)
    if job:
        status = read_last_status(lines)
        assert (status.step, status.steps, status.metrics["best/step"]) == (2, 9, 2)


TESTING = Stage("testing trained", 300, 1000)


def test_a_validation_or_test_is_told_with_its_own_count() -> None:
    progress = RunProgress(9, 9, 60.0, 14.0, {"train/loss": 0.31}, stage=TESTING)
    assert progress.format() == "9/9  1:00, 0:14 left · testing trained 300/1000 · train loss 0.310"
    assert progress.as_dict()["stage"] == {"name": "testing trained", "done": 300, "total": 1000}
    assert read_last_status([progress.as_json_line()]) == progress


@pytest.mark.parametrize("job", ["a-20260101", None])
def test_a_test_is_shown_now_and_then_in_logs(monkeypatch: pytest.MonkeyPatch, job: str | None) -> None:
    now = 1000.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    monkeypatch.delenv("METATRAIN_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("METATRAIN_JOB_ID", job)
    stream = io.StringIO()
    recorder = ProgressRecorder(stream)
    recorder.start(0, 9)
    for done in range(0, 1001, 20):
        recorder.progress("testing trained", done, 1000)
        now += 0.75
    lines = stream.getvalue().splitlines()
    told = [line for line in lines if not line.startswith(JSON_PREFIX)]
    assert told[0] == "testing trained 280/1000  0:10, 0:27 left"
    assert len(told) == 3
    if job is not None:
        status = read_last_status(lines[:2])
        assert status.stage == TESTING._replace(done=280) and status.seconds_left == 27.0
    recorder.record(3, {"train/loss": 0.5, "validation/accuracy": 0.5})
    assert stream.getvalue().splitlines()[-1 - (job is not None)].startswith("training 3/9")


def test_a_run_s_folder_tells_of_a_test_while_it_lasts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 1000.0
    monkeypatch.setattr(jsonl.time, "monotonic", lambda: now)
    recorder = JsonlRecorder(tmp_path / "metrics.jsonl")
    recorder.start(9, 9)
    recorder.progress("testing trained", 0, 1000)
    now += 6.0
    recorder.progress("testing trained", 300, 1000)
    known = RunProgress(9, 9, 60.0)
    file = tmp_path / jsonl.PROGRESS
    found = add_stage(known, file)
    assert found == RunProgress(9, 9, 60.0, pytest.approx(14.0), stage=TESTING)
    recorder.progress("testing trained", 1000, 1000)
    assert add_stage(known, file) == known and not file.exists()
    now += 6.0
    recorder.progress("testing untrained", 1, 1000)
    assert file.exists()
    recorder.close("interrupted")
    assert not file.exists()


@pytest.mark.parametrize("text", ["", "{}", "[" * 500, '{"stage": 1, "done": 2, "total": 3, "seconds_left": null}'])
def test_a_damaged_progress_of_a_test_is_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "progress.json").write_text(text)
    known = RunProgress(9, 9, 60.0)
    assert add_stage(known, tmp_path / "progress.json") == known


def test_the_best_is_kept_by_its_score() -> None:
    known: dict[str, float] = {}
    for step, accuracy in ((10, 0.5), (20, 0.7), (30, 0.6)):
        known = merge_metrics(known, step, {"validation/accuracy": accuracy, "validation/ci95": accuracy / 10})
    assert (known["best/accuracy"], known["best/ci95"], known["best/step"]) == (0.7, pytest.approx(0.07), 20)
    assert known["validation/accuracy"] == 0.6
    known = {}
    for step, mse in ((10, 0.5), (20, 0.2), (30, 0.4)):
        known = merge_metrics(known, step, {"validation/mse": mse})
    assert (known["best/mse"], known["best/step"]) == (0.2, 20)


def test_a_run_s_own_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics_file(path, 100) is None
    records = [{"step": step, "time": 1000.0 + 2 * step, "train/loss": 1 / (step + 1)} for step in range(1, 71)]
    records += [{"step": 70, "time": 1141.0, "validation/accuracy": 0.8, "validation/ci95": 0.02}]
    records += [{"step": 70, "time": 1142.0, "event": "checkpoint", "text": "saved"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 71, "ti')
    found = read_metrics_file(path, 100)
    assert (found.step, found.steps, found.seconds, found.tested) == (70, 100, 138.0, False)
    assert found.seconds_left == pytest.approx(60.0)
    assert found.metrics["best/step"] == 70


def test_memory_does_not_grow_with_a_run_s_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 5001):
            file.write(json.dumps({"step": step, "time": 2.0 * step, "train/loss": 0.1, "train/mse": 0.1}) + "\n")
    tracemalloc.start()
    found = read_metrics_file(path, 6000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.step, found.seconds, found.seconds_left) == (5000, 9998.0, 2000.0)
    assert most < path.stat().st_size / 2


def test_a_day_s_pause_is_not_part_of_the_pace_and_a_test_is_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"step": step, "time": 2.0 * step + 86400 * (step > 40), "train/loss": 0.1} for step in range(1, 51)]
    records += [{"step": 50, "time": 90000.0, "test/accuracy": 0.8}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = read_metrics_file(path, 100)
    assert found.seconds_left == pytest.approx(100.0)
    assert found.seconds == pytest.approx(96.0)
    assert found.tested
    assert read_metrics_file(path, 50).as_dict()["seconds_left"] == 0
