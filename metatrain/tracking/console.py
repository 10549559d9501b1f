"""Show the progress of a run on standard error: a bar on a terminal, a line now and then elsewhere.

Standard output is left to results.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from metatrain.runs import JOB_ID
from metatrain.tracking.status_line import RunProgress, Stage, format_duration, format_time_left, merge_metrics
from metatrain.types import RunStatus
from tasks.types import Progress as Counter

if TYPE_CHECKING:
    from rich.progress import Progress as Live

REDRAW_SECONDS = 0.1
NOTEBOOK_SECONDS = 0.5
LINE_SECONDS = 10.0


class ProgressRecorder:
    """Recorder that shows the run on `stream` (standard error) and stores nothing.

    On a terminal a bar, redrawn at most ten times a second; elsewhere a line every ten seconds and at each validation,
    in a submitted job with its JSON line, which `metatrain status` reads.
    """

    def __init__(self, stream: TextIO | None = None, known: Mapping[str, float] | None = None) -> None:
        """Prepare to show a run; `known`: its metrics so far, the best validation among them."""
        self._stream = stream or sys.stderr
        self._display = Display(self._stream, "", live=False)
        self._newest = {name: value for name, value in (known or {}).items() if name.startswith("best/")}
        self._first = self._step = self._total = 0
        self._started = 0.0
        self._since: tuple[int, float] | None = None
        self._stage_began = 0.0
        self._prints_json = JOB_ID in os.environ and not self._stream.isatty()

    def start(self, step: int, total: int) -> None:
        """Begin to draw. The pace is taken from the first step on, which may have to wait for workers."""
        self._display = Display(self._stream, "training")
        self._first, self._step, self._total = step, step, total
        self._started = time.monotonic()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the newest values."""
        self._step = step
        self._newest = merge_metrics(self._newest, step, metrics)
        validated = any(key.startswith("validation/") for key in metrics)
        seconds = time.monotonic() - self._started
        progress = RunProgress(step, self._total, seconds, self._estimate_seconds_left(step, seconds), self._newest)
        drawn = self._display.update(step, self._total, progress.format_details(), validated)
        self._print_json(progress, drawn)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how far a validation or test is, in place of the training."""
        now = time.monotonic()
        if done == 0:
            self._stage_began = now
        if not self._started:  # an evaluation by itself, without training before it
            self._display, self._started = Display(self._stream, stage), now
        spent = now - self._stage_began
        text = f"{format_duration(spent)}, {format_time_left(done, total, spent)} left"
        drawn = self._display.update(done, total, text, False, label=stage)
        left = spent * (total - done) / done if done else None
        seconds = now - self._started
        self._print_json(
            RunProgress(self._step, self._total, seconds, left, self._newest, stage=Stage(stage, done, total)), drawn
        )

    def _print_json(self, progress: RunProgress, drawn: bool) -> None:
        if drawn and self._prints_json:
            self._display.say(progress.as_json_line())

    def release(self) -> None:
        """Leave the terminal to results: the bar ends, and what is still to be said is printed plainly."""
        self._display.close()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing: files are not shown."""

    def event(self, step: int, kind: str, text: str) -> None:
        """Print a line above the bar."""
        self._display.say(f"step {step}: {kind}: {text}")

    def flush(self) -> None:
        """Do nothing: every line is printed at once."""

    def close(self, status: RunStatus) -> None:
        """Print a last line and leave the terminal as it was; do nothing if nothing was started."""
        if self._started:
            seconds = time.monotonic() - self._started
            self._display.close()
            self._display.say(f"{status} at step {self._step} of {self._total} after {format_duration(seconds)}")
            self._started = 0.0

    def _estimate_seconds_left(self, step: int, seconds: float) -> float | None:
        """Return the seconds left at the pace since the first record; None before there is a pace."""
        self._since = self._since or (step, seconds)
        steps, spent = step - self._since[0], seconds - self._since[1]
        if steps <= 0 or spent <= 0:
            steps, spent = step - self._first, seconds
        return spent * (self._total - step) / steps if steps > 0 else None


@contextmanager
def progress_bar(label: str, stream: TextIO | None = None) -> Iterator[Counter]:
    """Yield a function `progress(done, total)` that draws as training does; nothing is drawn before its first call."""
    target = stream or sys.stderr
    started = time.monotonic()
    display: Display | None = None

    def progress(done: int, total: int) -> None:
        nonlocal display
        display = display or Display(target, label)
        seconds = time.monotonic() - started
        text = f"{format_duration(seconds)}, {format_time_left(done, total, seconds)} left"
        display.update(done, total, text, done >= total)

    try:
        yield progress
    finally:
        if display is not None:
            display.close()


def in_notebook() -> bool:
    """Return whether this is a notebook's kernel, whose output shows a line that is overwritten but no cursor."""
    return "ipykernel.kernelapp" in sys.modules


class Display:
    """Show progress on a stream: a live bar, drawn by rich, on a terminal; in a notebook one line that is overwritten;
    plain lines in files and pipes.

    What else is printed to standard error appears above the bar.
    """

    def __init__(self, stream: TextIO, label: str, live: bool = True) -> None:
        self._stream, self._label = stream, label
        self._bar = _start_bar(stream, label) if live and stream.isatty() else None
        self._overwrites = self._bar is None and live and in_notebook()
        self._width = 0
        self._drawn = 0.0 if self._bar or self._overwrites else time.monotonic()

    def update(self, done: int, total: int, text: str, now: bool, label: str | None = None) -> bool:
        """Draw the progress if it is due (a bar after 0.1 s, a line after ten seconds) or `now`; return whether."""
        label = label or self._label
        moment = time.monotonic()
        pause = REDRAW_SECONDS if self._bar else NOTEBOOK_SECONDS if self._overwrites else LINE_SECONDS
        due = now or moment - self._drawn >= pause
        self._drawn = moment if due else self._drawn
        if self._bar:
            task = self._bar.task_ids[0]
            self._bar.update(task, description=label, completed=done, total=total, text=text, refresh=due)
        elif due and self._overwrites:
            line = f"{label} {done}/{total}  {text}"
            print(f"\r{line:<{self._width}}", end="", file=self._stream, flush=True)
            self._width = len(line)
        elif due:
            self.say(f"{label} {done}/{total}  {text}")
        return due

    def say(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._end_line()
            print(text, file=self._stream, flush=True)

    def _end_line(self) -> None:
        """Keep the line that would be overwritten."""
        if self._width:
            print(file=self._stream, flush=True)
            self._width = 0

    def close(self) -> None:
        """Leave the last state of the bar on the screen; later lines are printed plainly."""
        self._end_line()
        if self._bar:
            self._bar.stop()
            self._bar = None


def _start_bar(stream: TextIO, label: str) -> "Live":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
    )
    # Standard output is not redirected: programs read its last line.
    bar = Progress(*columns, console=Console(file=stream), redirect_stdout=False, auto_refresh=False, expand=True)
    bar.add_task(label, total=None, text="")
    bar.start()
    return bar
