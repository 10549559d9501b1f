"""Report the progress of a search: clock, best configuration, MLflow's parent run, a line on the terminal.

All of it follows from the history; nothing here is needed to resume.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metatrain.config.load import as_plain, as_yaml
from metatrain.metrics import METRICS, Metric
from metatrain.runs import Run, replace_text
from metatrain.setup import labels
from metatrain.tracking.console import Display
from metatrain.tracking.mlflow_connection import preflight
from metatrain.tracking.status_line import format_duration, format_time_left
from metatrain.types import RunStatus
from metatrain.yaml_config import flatten
from tasks.io.files import open_unlinked
from tasks.io.json_lines import parse_json_lines
from tune.config.search_config import SearchConfig
from tune.history.trials import FAILED_STATUSES, History, Status
from tune.search_dir import BEST, CLOCK, JOURNAL, UPLOADED, trial_run_id

if TYPE_CHECKING:
    from metatrain.tracking.mlflow_recorder import MLflowRecorder

ENDS: dict[Status, RunStatus] = {
    "completed": "finished",
    "stopped": "interrupted",
    "failed": "failed",
    "nan": "failed",
    "unfit": "failed",
}


_TICK_S, _FLUSH_S, _AWAY_S, _FILES_S = 60.0, 3.0, 60.0, 120.0
"""Intervals: of time stamps, of MLflow's metrics, of retries after MLflow did not answer, and of file uploads."""


class Clock:
    """Measure the seconds of a search over all its sessions, recorded beside each event of its journal."""

    def __init__(self, folder: Path) -> None:
        self._journal, self._path = folder / JOURNAL, folder / CLOCK
        known = _read_clock(self._path)
        self._noted = max((line["event"] for line in known), default=0)
        self._before = float(known[-1]["seconds"]) if known else 0.0
        self._began = self._noted_at = time.monotonic()
        self._size = self._lines = 0
        """Bytes of the journal that were read, and the lines in them."""

    @property
    def events(self) -> int:
        """Return the number of events of the journal so far."""
        return self._noted

    @property
    def seconds(self) -> float:
        """Return the seconds so far."""
        return self._before + time.monotonic() - self._began

    def note(self, last: bool = False) -> None:
        """Write a line for each new event, and from time to time and at the end repeat the last one with the present
        time.
        """
        size = self._journal.stat().st_size
        late = time.monotonic() - self._noted_at > _TICK_S
        if size == self._size and not (late or last):
            return
        with self._journal.open("rb") as file:
            file.seek(self._size)
            self._lines += file.read(size - self._size).count(b"\n")
        self._size, self._noted_at = size, time.monotonic()
        events = self._lines - 1
        now, seconds = round(time.time(), 1), round(self.seconds, 1)
        with open_unlinked(self._path, "a") as file:
            for number in range(self._noted + (0 if late or last else 1), events + 1):
                file.write(json.dumps({"event": number, "seconds": seconds, "time": now}) + "\n")
        self._noted = max(self._noted, events)


def _read_clock(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a clock up to one that a crash tore, and cut the file there."""
    found: list[dict[str, Any]] = []
    if not path.exists():
        return found
    kept = 0
    with path.open("rb") as file, suppress(ValueError):
        for line, value in parse_json_lines(file, str(path), "remove that line"):
            found.append(value)
            kept += len(line)
    if kept < path.stat().st_size:
        with open_unlinked(path, "ab") as file:
            file.truncate(kept)
    return found


class SearchStatus(NamedTuple):
    """Describe how far a search has come."""

    history: History
    metric: str
    trials: int | None
    minutes: float | None
    seconds: float

    def progress(self) -> tuple[int, int]:
        """Return (done, total): trials that have ended, or seconds if the number of trials has no limit."""
        if self.trials is not None:
            return len(self.history.trials) - len(self.history.running), self.trials
        return round(self.seconds), round(60 * (self.minutes or 0))

    def text(self) -> str:
        """Return the status in one line."""
        return " · ".join(part for part in (self._times(), *self._parts()) if part)

    def _times(self) -> str:
        done, total = self.progress()
        by_trials = format_time_left(done, total, self.seconds) if self.trials is not None else "?"
        by_clock = None if self.minutes is None else max(0.0, 60 * self.minutes - self.seconds)
        left = by_trials if by_clock is None else f"at most {format_duration(by_clock)}"
        return f"{format_duration(self.seconds)}, {left} left"

    def _parts(self) -> list[str]:
        history = self.history
        states = Counter(trial.status for trial in history.trials)
        broken = sum(states[status] for status in FAILED_STATUSES)
        begun = f"{len(history.trials)} trials, {states['running']} running" + (f", {broken} failed" if broken else "")
        rungs = Counter(budget for _, budget in history.result_order)
        reached = ", ".join(f"{count} to {budget}" for budget, count in sorted(rungs.items()))
        return [begun, f"steps: {reached}" if reached else "", self.best()]

    def best(self) -> str:
        """Describe the best trial so far; empty if none has a result."""
        best = self.history.best()
        if best is None:
            return ""
        budget, value = best.results[-1]
        name = self.metric.partition("/")[2]
        metric = METRICS.get(name, Metric(name, name, higher_is_better=False))
        shown = f"{metric.scale * value:.2f} %" if metric.unit == "%" else f"{value:.4g}"
        value_text = shown if name == "accuracy" else f"{name} {shown}"
        return f"best {value_text} by trial {best.number} at step {budget}"


class Monitor:
    """Report a search while it runs."""

    def __init__(self, home: Run, config: SearchConfig) -> None:
        self._home, self._config = home, config
        self.clock = Clock(home.path)
        self._display = Display(sys.stderr, "searching")
        self._shown_best = self._reported_error = ""
        self._due = self._files_due = 0.0
        self._recorder = _parent_recorder(home, config)

    @property
    def parent_run(self) -> str | None:
        """Return MLflow's id of the parent run."""
        return None if self._recorder is None else self._recorder.mlflow_run_id

    def start(self, history: History) -> None:
        """Find the parent run, or create it."""
        if self._recorder is not None:
            self._recorder.start(history.steps, 0)
            self._recorder.artifact(self._home.config)
            self._recorder.set_child_statuses(_run_statuses(self._home, history))

    def update(self, history: History) -> None:
        """Report everything that is new since the last call."""
        self.clock.note()
        search = self._config.search
        status_line = SearchStatus(history, search.metric, search.trials, search.minutes, self.clock.seconds)
        best = status_line.best()
        self._display.update(*status_line.progress(), status_line.text(), best != self._shown_best)
        if best != self._shown_best:
            self._shown_best = best
            self._write_best(history)
        if time.monotonic() >= self._due:
            self._record(lambda to: to.record(history.steps, _best_metrics(history)))
            self._record(lambda to: to.record(self.clock.events, _count_trials(history)))
            self._record(lambda to: to.flush())
        if time.monotonic() >= self._files_due:  # if it is killed, later searches can use what it found
            self._files_due = time.monotonic() + _FILES_S
            self.upload_files()

    def upload_files(self) -> None:
        """Upload the files of the search's folder to MLflow."""
        for path in (self._home.path / name for name in UPLOADED):
            if path.exists():
                self.artifact(path)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file to the parent run."""
        self._record(lambda to: to.artifact(path, folder))

    def close(self, history: History, status: RunStatus) -> None:
        """Restore the terminal and record in MLflow how the search ended."""
        self._due = 0.0
        self.update(history)
        self._display.close()
        self._record(lambda to: to.set_child_statuses(_run_statuses(self._home, history)))
        self._record(lambda to: to.close(status))

    def abandon(self) -> None:
        """Stop reporting: another driver owns the search now."""
        self._display.close()
        self._recorder = None

    def _record(self, call: Callable[["MLflowRecorder"], None]) -> None:
        """Call the recorder; an error of MLflow does not end the search, and is retried later, or by `--resume`.

        MLflow's client alone would retry for minutes.
        """
        if self._recorder is None:
            return
        self._due = time.monotonic() + _FLUSH_S
        try:
            preflight(self._recorder.uri)
            call(self._recorder)
        except (OSError, ValueError) as error:  # it does not answer, or refuses the login
            self._due = time.monotonic() + _AWAY_S
            if str(error) != self._reported_error:
                self._reported_error = str(error)
                self._display.say(f"not in MLflow yet: {error}")

    def _write_best(self, history: History) -> None:
        best = history.best()
        if best is not None:
            replace_text(self._home.path / BEST, as_yaml(self._config.trial_config(best.configuration)))


def _run_statuses(home: Run, history: History) -> dict[str, RunStatus]:
    """Return the statuses of ended trials by the ids of their runs: a killed process has not recorded its own."""
    return {trial_run_id(home, trial.number): ENDS[trial.status] for trial in history.trials if trial.status in ENDS}


def _best_metrics(history: History) -> Mapping[str, float]:
    best = history.best()
    return {"search/best": best.results[-1][1]} if best else {}


def _count_trials(history: History) -> Mapping[str, float]:
    states = Counter("failed" if trial.has_failed else trial.status for trial in history.trials)
    counts = {f"search/{status}": float(states[status]) for status in ("running", "stopped", "completed", "failed")}
    return {**counts, "search/trials": float(len(history.trials))}


def _parent_recorder(home: Run, config: SearchConfig) -> "MLflowRecorder | None":
    if config.base.tracking.uri is None:
        return None
    from metatrain.tracking.mlflow_recorder import MLflowRecorder  # imports mlflow: seconds

    plain = config.to_plain()
    base, ours = as_plain(config.base), {key: plain[key] for key in ("search", "space")}
    tags = labels(config.base) | {"metatrain.search": home.run_id}
    tracking = config.base.tracking
    return MLflowRecorder(tracking.uri or "", tracking.experiment, home.run_id, flatten(base) | flatten(ours), tags)
