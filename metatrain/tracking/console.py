"""What a person sees while the machine works: a bar on a terminal, a line now and then elsewhere.

Everything goes to standard error; standard output belongs to results.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from metatrain.tracking.status_line import Standing, duration, time_left, with_newest
from metatrain.types import RunStatus
from tasks.types import Progress as Counter

REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0


class Display(Protocol):
    """Where progress is drawn."""

    def update(self, done: int, total: int, text: str, now: bool) -> None:
        """The state of the work; drawn when it is due, or `now`."""
        ...

    def say(self, text: str) -> None:
        """A line that stays."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class Progress:
    """A recorder that shows the run on `stream` (standard error) and keeps nothing.

    On a terminal a bar, redrawn at most ten times a second; elsewhere a line every ten seconds and at each validation.
    """

    def __init__(self, stream: TextIO | None = None, known: Mapping[str, float] | None = None) -> None:
        """known: metrics of the run so far, the best validation among them."""
        self._stream = stream or sys.stderr
        self._display: Display = Lines(self._stream, "")
        self._newest = {name: value for name, value in (known or {}).items() if name.startswith("best/")}
        self._first = self._step = self._total = 0
        self._started = 0.0
        self._since: tuple[int, float] | None = None

    def start(self, step: int, total: int) -> None:
        """Begin to draw. Time left is judged by the pace from the first step on, which may have to wait for workers."""
        self._display = display_on(self._stream, "training")
        self._first, self._step, self._total = step, step, total
        self._started = time.monotonic()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the newest values."""
        self._step = step
        self._newest = with_newest(self._newest, step, metrics)
        validated = any(key.startswith("validation/") for key in metrics)
        seconds = time.monotonic() - self._started
        self._since = self._since or (step, seconds)
        steps, spent = step - self._since[0], seconds - self._since[1]
        first = step - seconds * steps / spent if steps > 0 and spent > 0 else self._first
        standing = Standing(step, self._total, seconds, self._newest, first)
        self._display.update(step, self._total, standing.text(), validated)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Nothing to see."""

    def event(self, step: int, kind: str, text: str) -> None:
        """A line above the bar."""
        self._display.say(f"step {step}: {kind}: {text}")

    def flush(self) -> None:
        """Nothing is kept."""

    def close(self, status: RunStatus) -> None:
        """A last line, and the terminal as it was; nothing more where nothing was started."""
        if self._started:
            seconds = time.monotonic() - self._started
            self._display.close()
            Lines(self._stream, "").say(f"{status} at step {self._step} of {self._total} after {duration(seconds)}")
            self._started = 0.0


@contextmanager
def counter(label: str, stream: TextIO | None = None) -> Iterator[Counter]:
    """A `progress(done, total)` that is drawn as the training's is while the block runs; unused, it draws nothing."""
    target = stream or sys.stderr
    started = time.monotonic()
    display: Display | None = None

    def progress(done: int, total: int) -> None:
        nonlocal display
        display = display or display_on(target, label)
        seconds = time.monotonic() - started
        text = f"{duration(seconds)}, {time_left(done, total, seconds)} left"
        display.update(done, total, text, done >= total)

    try:
        yield progress
    finally:
        if display is not None:
            display.close()


def display_on(stream: TextIO, label: str) -> Display:
    """What suits `stream`: a bar on a terminal, else lines."""
    return Bar(stream, label) if stream.isatty() else Lines(stream, label)


class Lines:
    """Plain lines, for files and pipes."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._label = stream, label
        self._drawn = time.monotonic()

    def update(self, done: int, total: int, text: str, now: bool) -> None:
        """A line, unless the last one is young and there is no reason for another."""
        moment = time.monotonic()
        if now or moment - self._drawn >= LINE_SECONDS:
            self._drawn = moment
            self.say(f"{self._label} {done}/{total}  {text}")

    def say(self, text: str) -> None:
        """The line."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to put back."""


class Bar:
    """A live bar, by rich. What else is printed to standard error appears above it."""

    def __init__(self, stream: TextIO, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Live
        from rich.table import Column

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        )
        # Standard output is left alone: its last line is what a program reads.
        self._live = Live(
            *columns, console=Console(file=stream), redirect_stdout=False, auto_refresh=False, expand=True
        )
        self._task = self._live.add_task(label, total=None, text="")
        self._drawn = 0.0
        self._live.start()

    def update(self, done: int, total: int, text: str, now: bool) -> None:
        """Redraw, at most ten times a second unless it is `now`."""
        moment = time.monotonic()
        due = now or moment - self._drawn >= REDRAW_SECONDS
        self._drawn = moment if due else self._drawn
        self._live.update(self._task, completed=done, total=total, text=text, refresh=due)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._live.stop()
