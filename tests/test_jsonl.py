import io
import json
import math
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metatrain.tracking import console, status_line
from metatrain.tracking.jsonl import CompositeRecorder, JsonlRecorder, read_lines
from metatrain.types import Recorder, RunStatus


def lines(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in read_lines(path)]


def test_json_lines_has_a_line_for_each_record_and_event(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    recorder = JsonlRecorder(path)
    before = time.time()
    recorder.start(0, 2)
    recorder.record(1, {"train/loss": 0.5, "train/accuracy": 1})
    recorder.event(1, "checkpoint", "saved 'ü'\nhere")
    recorder.record(2, {"train/loss": math.nan, "train/accuracy": math.inf})
    recorder.close("failed")
    recorder.close("failed")
    assert lines(path) == [
        {"step": 1, "train/loss": 0.5, "train/accuracy": 1.0},
        {"step": 1, "event": "checkpoint", "text": "saved 'ü'\nhere"},
        {"step": 2, "train/loss": None, "train/accuracy": None},
    ]
    assert all(before <= line["time"] <= time.time() for line in read_lines(path))
    assert len(path.read_text().splitlines()) == 3


def test_a_resume_cuts_back_to_its_step_and_records_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonlRecorder(path)
    first.start(0, 9)
    for step in range(1, 6):
        first.record(step, {"train/loss": float(step)})
        first.event(step, "retry", "again")
    first.close("interrupted")
    with path.open("a") as file:
        file.write('{"step": 3, "train/lo')
    second = JsonlRecorder(path)
    second.start(3, 9)
    second.record(3, {"train/loss": 3.0})
    second.record(3, {"validation/loss": 7.0, "train/loss": 3.0})
    for step in range(4, 7):
        second.record(step, {"train/loss": float(step)})
    second.close("finished")
    recorded = lines(path)
    assert [line["step"] for line in recorded if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in recorded if "event" in line] == [1, 2, 3]
    assert {"step": 3, "validation/loss": 7.0} in recorded
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", [b'{"step": 2', b'{"step": 2}', b"\0\0\0\0", b"[1]\n", b'{"step": "2"}\n'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "train/loss": 1.0}\n' + torn)
    assert lines(path) == [{"step": 1, "train/loss": 1.0}]
    recorder = JsonlRecorder(path)
    recorder.start(5, 9)
    recorder.record(6, {"train/loss": 6.0})
    recorder.close("finished")
    assert [line["step"] for line in lines(path)] == [1, 6]


def test_damage_before_the_last_line_is_an_error_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2: not a JSON object: remove"):
        JsonlRecorder(path).start(3, 9)


WRITER = """
import sys
from pathlib import Path
from metatrain.tracking.jsonl import JsonlRecorder
recorder = JsonlRecorder(Path(sys.argv[1]))
start = int(sys.argv[2])
recorder.start(start, 10**9)
print("ready", flush=True)
for step in range(start + 1, 10**9):
    recorder.record(step, {"train/loss": 1 / step})
    if step % 50 == 0:
        recorder.record(step, {"validation/loss": 1 / step})
        recorder.flush()
        print(step, flush=True)
"""


def test_killed_and_resumed_no_line_is_missing_or_doubled(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    chance = random.Random(1)
    step = 0
    for _ in range(4):
        arguments = [sys.executable, "-c", WRITER, str(path), str(step)]
        writer = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(chance.uniform(0.02, 0.2))
        writer.send_signal(signal.SIGKILL)
        step = max([step, *(int(line) for line in writer.communicate()[0].split("\n")[:-1])])
    last = JsonlRecorder(path)
    last.start(step, step)
    last.close("finished")
    recorded = lines(path)
    assert step > 100
    assert [line["step"] for line in recorded if "train/loss" in line] == list(range(1, step + 1))
    assert [line["step"] for line in recorded if "validation/loss" in line] == list(range(50, step + 1, 50))


class Spy:
    def __init__(self, log: list[Any], fails: bool = False) -> None:
        self.log, self.fails = log, fails

    def start(self, step: int, total: int) -> None:
        self.log.append(("start", step, total))

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        self.log.append(("record", step, dict(metrics)))

    def progress(self, stage: str, done: int, total: int) -> None:
        self.log.append(("progress", stage, done, total))

    def artifact(self, path: Path, folder: str = "") -> None:
        self.log.append(("artifact", path, folder))

    def event(self, step: int, kind: str, text: str) -> None:
        self.log.append(("event", step, kind, text))

    def flush(self) -> None:
        self.log.append(("flush",))

    def close(self, status: RunStatus) -> None:
        self.log.append(("close", status))
        if self.fails:
            raise ConnectionError("gone")


def tell(recorder: Recorder) -> None:
    recorder.start(2, 5)
    recorder.record(3, {"train/loss": 1.0})
    recorder.progress("validating", 3, 9)
    recorder.artifact(Path("curves.png"), "plots")
    recorder.event(3, "retry", "again")
    recorder.flush()
    recorder.close("finished")


def test_several_tells_each_the_same() -> None:
    alone: list[Any] = []
    tell(Spy(alone))
    logs: tuple[list[Any], list[Any]] = ([], [])
    tell(CompositeRecorder([Spy(logs[0]), CompositeRecorder(), Spy(logs[1])]))
    assert logs == (alone, alone) and len(alone) == 7


def test_several_closes_the_others_when_one_fails_to() -> None:
    log: list[Any] = []
    with pytest.raises(ConnectionError):
        CompositeRecorder([Spy(log, fails=True), Spy(log)]).close("failed")
    assert log == [("close", "failed")] * 2


METRICS = {"train/loss": 0.25, "train/accuracy": 0.875, "time/tasks_per_second": 512.0}


def test_progress_off_a_terminal_prints_at_validation_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    stream = io.StringIO()
    shown = console.ProgressRecorder(stream)
    shown.event(100, "resume", "from 00000100")
    shown.start(100, 200)
    for step in range(101, 151):
        now += 1.0
        shown.record(step, METRICS)
    shown.record(150, {"validation/accuracy": 0.9, "validation/ci95": 0.01})
    shown.event(150, "checkpoint", "[bold]saved[/bold]")
    shown.close("interrupted")
    shown.close("interrupted")
    printed = stream.getvalue().splitlines()
    assert printed[0] == "step 100: resume: from 00000100"
    assert len([line for line in printed if line.startswith("training")]) == 6
    assert printed[1].startswith("training 110/200  0:10, 1:30 left · train loss 0.250, 87.50 % · 512 tasks/s")
    assert (
        "validation 90.00 ± 1.00 % · best 90.00 ± 1.00 % at step 150" in printed[6] and "0:50, 0:50 left" in printed[6]
    )
    assert printed[7:] == ["step 150: checkpoint: [bold]saved[/bold]", "interrupted at step 150 of 200 after 0:50"]


def test_regression_is_told_in_mse() -> None:
    metrics = {"train/loss": 1.5, "train/mse": 1.5, "validation/mse": 0.4, "validation/ci95": 0.05}
    assert status_line.format_metrics(metrics) == ["train loss 1.500, mse 1.5", "validation mse 0.4 ± 0.05"]
    assert status_line.format_metrics({}) == []


def test_durations() -> None:
    assert [status_line.format_duration(seconds) for seconds in (0.2, 59.6, 725, 3723)] == [
        "0:00",
        "1:00",
        "12:05",
        "1:02:03",
    ]
    assert status_line.format_time_left(0, 10, 3.0) == "?"
    assert status_line.format_time_left(5, 10, 3.0) == "0:03"


def test_a_counter_off_a_terminal_prints_its_end() -> None:
    stream = io.StringIO()
    with console.progress_bar("reading", stream) as count:
        for done in range(1, 101):
            count(done, 100)
    assert stream.getvalue() == "reading 100/100  0:00, 0:00 left\n"


def test_a_counter_that_is_not_called_says_nothing() -> None:
    stream = io.StringIO()
    with console.progress_bar("reading", stream):
        pass
    assert stream.getvalue() == ""


ON_A_TERMINAL = """
import sys
from metatrain.tracking.console import ProgressRecorder, progress_bar
with progress_bar("reading") as count:
    for done in range(11):
        count(done, 10)
shown = ProgressRecorder()
shown.start(10, 40)
for step in range(11, 41):
    shown.record(step, {"train/loss": 0.5, "train/accuracy": 0.75, "time/tasks_per_second": 99.0})
    if step == 20:
        shown.record(step, {"validation/accuracy": 0.9, "validation/ci95": 0.01})
        shown.event(step, "checkpoint", "[red]saved[/red]")
        print("a warning", file=sys.stderr)
        print("result 1")
shown.close("finished")
print("result 2")
"""


def test_on_a_terminal_a_bar_is_drawn_and_standard_output_is_left_alone() -> None:
    terminal, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    child = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL], stdout=subprocess.PIPE, stderr=end, text=True, env=environment
    )
    os.close(end)
    drawn = b""
    try:
        while piece := os.read(terminal, 4096):
            drawn += piece
    except OSError:
        pass  # how Linux says that the other end was closed
    finally:
        os.close(terminal)
    assert child.communicate()[0] == "result 1\nresult 2\n"
    assert child.returncode == 0
    text = drawn.decode()
    for part in ("reading", "10/10", "40/40", "step 20: checkpoint: [red]saved[/red]", "a warning", "90.00 ± 1.00 %"):
        assert part in text
    assert "finished at step 40 of 40" in text.splitlines()[-1]
    assert "\x1b[?25h" in text, "the cursor comes back"


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    recorder = JsonlRecorder(tmp_path / "m.jsonl")
    recorder.start(0, 1)
    recorder.record(1, {"train/loss": -math.inf})
    recorder.flush()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse)
    recorder.close("finished")
