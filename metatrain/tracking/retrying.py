"""Go on training while MLflow does not answer, and send what it lacks once it does.

The buffer is the run's own metrics.jsonl, which has every record before MLflow gets it: nothing is kept in memory, and
a resumed driver sends what an earlier one could not.
"""

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from metatrain.tracking.jsonl import read_lines
from metatrain.tracking.mlflow_connection import TrackingError, check_writable
from metatrain.types import RunStatus

if TYPE_CHECKING:
    from metatrain.tracking.mlflow_recorder import MLflowRecorder

Notify = Callable[[int, str, str], None]
WAIT_FIRST, WAIT_LATER = 5.0, 2.0
"""Seconds that a record waits for a lock or a server, while MLflow answers and while it does not."""
PAUSE_LEAST, PAUSE_MOST = 3.0, 60.0
"""Seconds between requests; while MLflow does not answer they grow from one to the other."""
WAIT_LAST = 10.0
"""Seconds that `close` goes on asking."""
_POINTS = 1000
"""Points that are sent together when records are sent again."""


def print_event(step: int, kind: str, text: str) -> None:
    """Print an event on standard error."""
    print(f"{kind}: {text}", file=sys.stderr, flush=True)  # noqa: T201 there is no display where only MLflow records


class RetryingRecorder:
    """Pass everything on to `recorder`; while MLflow does not answer, keep going and try again every few seconds.

    metrics: the run's metrics.jsonl, to which a recorder before this one writes. where: what people know the run by.
    notify: told once when MLflow is away, once when it is back, and at the end if it lacks records.
    `start` raises TrackingError as MLflowRecorder does: a run does not begin where nothing would be recorded.
    """

    def __init__(self, recorder: "MLflowRecorder", metrics: Path, where: str, notify: Notify = print_event) -> None:
        self._inner, self._metrics, self._where, self._notify = recorder, metrics, where, notify
        self._step = self._total = 0
        self._started = self._away = False
        self._pause = self._due = 0.0
        self._files: dict[tuple[Path, str], None] = {}

    def start(self, step: int, total: int) -> None:
        """Find the run or make it, and send what it lacks of the run's earlier records."""
        self._step, self._total = step, total
        self._inner.start(step, total)
        self._started = True
        self._try(self._send_again)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep what is new, and send what is kept every few seconds."""
        self._step = step
        if not self._away:
            self._inner.keep(step, metrics)
        if time.monotonic() >= self._due:
            self.flush()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Do nothing: progress is shown, not kept."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload the file, or remember it for when MLflow answers."""
        self._files[path, folder] = None
        if not self._away:
            self._try(self._upload)

    def event(self, step: int, kind: str, text: str) -> None:
        """Keep the event for the next batch; of each kind the newest."""
        self._inner.event(step, kind, text)

    def flush(self) -> None:
        """Send everything, unless MLflow is away: metrics.jsonl has it."""
        if not self._away:
            self._try(self._inner.flush)
        elif time.monotonic() >= self._due:
            self._try(self._reconnect)

    def close(self, status: RunStatus) -> None:
        """Send everything and set the final status; if MLflow stays away for some seconds, say how to go on."""
        if not self._started:
            return
        self._started = False
        end = time.monotonic() + WAIT_LAST
        while not self._try(lambda: self._finish(status)):
            if time.monotonic() >= end:
                again = f"`metatrain train --resume {shlex.quote(self._where)}` sends them"
                self._tell(f"MLflow lacks records of this run, which are kept in its folder: {again}")
                return
            time.sleep(min(1.0, PAUSE_LEAST))

    def _finish(self, status: RunStatus) -> None:
        if self._away:
            self._reconnect()
        self._upload()
        self._inner.close(status)

    def _try(self, send: Callable[[], None]) -> bool:
        """Return whether MLflow took it; else it is away, for at least a pause."""
        try:
            check_writable(self._inner.uri, WAIT_LATER if self._away else WAIT_FIRST)
            send()
        except (OSError, ValueError) as error:  # also a full disk, a refused login, a deleted experiment
            if not self._away:
                self._away, self._pause = True, PAUSE_LEAST
                kept = f"records are kept in {self._where} and sent when it does"
                self._tell(f"MLflow does not answer ({_reason(error)}): {kept}")
            self._due = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, PAUSE_MOST)
            return False
        self._due = time.monotonic() + PAUSE_LEAST
        return True

    def _tell(self, text: str) -> None:
        self._notify(self._step, "tracking", text)

    def _reconnect(self) -> None:
        self._inner.start(self._step, self._total)
        self._send_again()
        self._upload()
        self._away = False
        self._tell("MLflow answers again, and has what was kept")

    def _send_again(self) -> None:
        """Send what MLflow lacks of metrics.jsonl, whose recorder starts before this one and has cut it back."""
        if not self._metrics.exists():
            return
        points = 0
        for line in read_lines(self._metrics):
            step, moment = line["step"], line.get("time")
            if "event" in line:
                self._inner.event(step, str(line["event"]), str(line.get("text", "")))
                continue
            values = {key: value for key, value in line.items() if key not in ("step", "time")}
            points += self._inner.keep(
                step, {key: float("nan") if value is None else value for key, value in values.items()}, moment
            )
            if points >= _POINTS:
                self._inner.flush()
                points = 0
        self._inner.flush()

    def _upload(self) -> None:
        for path, folder in list(self._files):
            if path.exists():  # old checkpoints are removed
                self._inner.artifact(path, folder)
            del self._files[path, folder]


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) if isinstance(error, TrackingError) else None
    return " ".join(str(reason or error).split())[:200]
