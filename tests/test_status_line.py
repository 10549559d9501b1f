"""Where a run stands, written as a line and read back."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatrain.tracking.status_line import Standing, last_told, of_run, parsed, with_newest

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
ERROR = {"train/loss": 1.5, "train/mse": 1.5, "validation/mse": 0.4, "validation/ci95": 0.05, "cluster/workers": 1.0}


@pytest.mark.parametrize("metrics", [ACCURACY, ERROR, {}], ids=["accuracy", "mse", "nothing yet"])
def test_a_line_reads_back(metrics: dict[str, float]) -> None:
    standing = Standing(120, 500, 12.0, metrics)
    found = parsed(f"training {standing.line()}")
    assert found is not None
    assert (found.step, found.total, found.seconds, found.metrics) == (120, 500, 12.0, metrics)


@given(
    step=st.integers(0, 10**6),
    more=st.integers(0, 10**6),
    seconds=st.integers(0, 10**6),
    loss=st.floats(allow_infinity=True, allow_nan=False, width=32),
    accuracy=st.floats(0, 1),
    ci95=st.floats(0, 1),
    pace=st.floats(1e-6, 1e6),
    workers=st.integers(0, 5000),
)
def test_any_line_reads_back_to_its_digits(step, more, seconds, loss, accuracy, ci95, pace, workers) -> None:
    metrics = {
        "train/loss": loss,
        "train/accuracy": accuracy,
        "validation/accuracy": accuracy,
        "validation/ci95": ci95,
        "time/tasks_per_second": pace,
        "cluster/workers": workers,
    }
    found = parsed(f"training {Standing(step, step + more, seconds, metrics).line()}")
    assert (found.step, found.total, found.seconds) == (step, step + more, seconds)
    assert found.metrics.keys() == metrics.keys()
    assert found.metrics["train/loss"] == pytest.approx(loss, rel=1e-3, abs=1e-3)
    assert found.metrics["validation/accuracy"] == pytest.approx(accuracy, abs=1e-4)
    assert found.metrics["validation/ci95"] == pytest.approx(ci95, abs=1e-4)
    assert found.metrics["time/tasks_per_second"] == pytest.approx(pace, rel=1e-3)
    assert found.metrics["cluster/workers"] == workers


@given(st.text())
def test_other_lines_are_no_standing(text: str) -> None:
    assert parsed(text) is None
    assert parsed(f"preparing omniglot 3000/32460  0:11, {text} left") is None
    assert parsed("preparing omniglot 3000/32460  0:11, 1:48 left") is None


@pytest.mark.parametrize(
    "rest",
    [
        "0:01, 0:08 left · validation foo %",
        "0:01, 0:08 left · train loss 1.2.3",
        "0:01, 0:08 left · - tasks/s",
        "::, 0:08 left",
        "0:01, : left",
        f"0:01, 0:08 left · best {'9' * 400} % at step {'9' * 5000}",
        f"{'9' * 400}, 0:08 left",
    ],
)
def test_an_odd_line_in_somebody_s_log_tells_nothing_and_ends_nothing(rest: str) -> None:
    for count in ("3/9", f"3/{'9' * 400}", f"{'9' * 5000}/9"):
        told = last_told(["training 2/9  0:01, 0:08 left", f"training {count}  {rest}"])
        assert json.loads(json.dumps(told.as_dict()))["steps"] == 9
        assert told.line()
    assert "workers" not in last_told([f"training 1/9  0:01, 0:08 left · {'9' * 400} workers"]).line()


def test_the_last_one_of_a_log() -> None:
    lines = [
        "training 1/9  0:01, 0:08 left",
        "step 2: worker-lost: pid 7",
        "training 3/9  0:03, 0:06 left",
        "metatrain: no",
    ]
    assert last_told(lines) == Standing(3, 9, 3.0)
    assert last_told(["metatrain: tasks.root: missing"]) is None


def test_time_left_is_what_the_line_says_of_a_resumed_run_too() -> None:
    line = Standing(410, 500, 10.0, {}, 404.0).line()
    found = parsed(f"training {line}")
    assert found.seconds_left == pytest.approx(150.0, abs=0.6)
    assert found.line() == line
    assert parsed("training 7/9  0:00, ? left").seconds_left is None


def test_the_best_is_kept_by_its_score() -> None:
    known: dict[str, float] = {}
    for step, accuracy in ((10, 0.5), (20, 0.7), (30, 0.6)):
        known = with_newest(known, step, {"validation/accuracy": accuracy, "validation/ci95": accuracy / 10})
    assert (known["best/accuracy"], known["best/ci95"], known["best/step"]) == (0.7, pytest.approx(0.07), 20)
    assert known["validation/accuracy"] == 0.6
    known = {}
    for step, mse in ((10, 0.5), (20, 0.2), (30, 0.4)):
        known = with_newest(known, step, {"validation/mse": mse})
    assert (known["best/mse"], known["best/step"]) == (0.2, 20)


def test_a_run_s_own_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert of_run(path, 100) is None
    records = [{"step": step, "time": 1000.0 + 2 * step, "train/loss": 1 / (step + 1)} for step in range(1, 71)]
    records += [{"step": 70, "time": 1141.0, "validation/accuracy": 0.8, "validation/ci95": 0.02}]
    records += [{"step": 70, "time": 1142.0, "event": "checkpoint", "text": "saved"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 71, "ti')
    found = of_run(path, 100)
    assert (found.step, found.total, found.seconds, found.tested) == (70, 100, 138.0, False)
    assert found.seconds_left == pytest.approx(60.0)
    assert found.metrics["best/step"] == 70


def test_a_day_s_pause_is_not_part_of_the_pace_and_a_test_is_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"step": step, "time": 2.0 * step + 86400 * (step > 40), "train/loss": 0.1} for step in range(1, 51)]
    records += [{"step": 50, "time": 90000.0, "test/accuracy": 0.8}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = of_run(path, 100)
    assert found.seconds_left == pytest.approx(100.0)
    assert found.seconds == pytest.approx(96.0)
    assert found.tested
    assert of_run(path, 50).as_dict()["seconds_left"] == 0


def test_what_is_no_number_is_null_for_programs() -> None:
    assert Standing(1, 2, 1.0, {"train/loss": math.nan}).as_dict()["train/loss"] is None
