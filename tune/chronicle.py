"""What a search tells while it runs: the clock, the best configuration, MLflow's parent run, a line on the terminal.

All of it follows from the history, which may be looked at at any time; nothing of it is needed to go on.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from metatrain.config import as_plain, as_yaml
from metatrain.plain import flat
from metatrain.preparation import labels
from metatrain.progress import Display, display_on
from metatrain.runs import Run, replace_text
from metatrain.standing import duration, time_left
from metatrain.types import RunStatus
from tune.document import Document
from tune.folder import BEST, CLOCK, JOURNAL, trial_id
from tune.history import History, Status

ENDS: dict[Status, RunStatus] = {
    "completed": "finished",
    "stopped": "interrupted",
    "failed": "failed",
    "nan": "failed",
}


class Clock:
    """Seconds of a search, all its sessions together, kept beside each event of its journal."""

    def __init__(self, folder: Path) -> None:
        self._journal, self._path = folder / JOURNAL, folder / CLOCK
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else []
        known = [json.loads(line) for line in lines[:-1]]
        self._noted = len(known)
        self._before = float(known[-1]["seconds"]) if known else 0.0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.monotonic() - self._began

    def note(self) -> None:
        """A line for each event that is new."""
        events = self._journal.read_bytes().count(b"\n") - 1
        now, seconds = round(time.time(), 1), round(self.seconds, 1)
        with self._path.open("a", encoding="utf-8") as file:
            for number in range(self._noted + 1, events + 1):
                file.write(json.dumps({"event": number, "seconds": seconds, "time": now}) + "\n")
        self._noted = max(self._noted, events)


class Standing(NamedTuple):
    """Where a search stands."""

    history: History
    document: Document
    seconds: float

    def progress(self) -> tuple[int, int]:
        """How much of it is done: trials that have ended, or seconds where there is no number of trials."""
        search, history = self.document.search, self.history
        if search.trials is not None:
            return len(history.trials) - len(history.running), search.trials
        return round(self.seconds), round(60 * (search.minutes or 0))

    def text(self) -> str:
        """In one line."""
        return " · ".join(part for part in (self._times(), *self._parts()) if part)

    def _times(self) -> str:
        done, total = self.progress()
        by_trials = time_left(done, total, self.seconds) if self.document.search.trials is not None else "?"
        minutes = self.document.search.minutes
        by_clock = None if minutes is None else max(0.0, 60 * minutes - self.seconds)
        left = by_trials if by_clock is None else f"at most {duration(by_clock)}"
        return f"{duration(self.seconds)}, {left} left"

    def _parts(self) -> list[str]:
        history = self.history
        states = Counter(trial.status for trial in history.trials)
        broken = states["failed"] + states["nan"]
        begun = f"{len(history.trials)} trials, {states['running']} running" + (f", {broken} failed" if broken else "")
        rungs = Counter(budget for _, budget in history.arrivals)
        reached = ", ".join(f"{count} to {budget}" for budget, count in sorted(rungs.items()))
        return [begun, f"steps: {reached}" if reached else "", self.best()]

    def best(self) -> str:
        """The best so far; nothing where nobody has a result."""
        best = self.history.best()
        if best is None:
            return ""
        budget, value = best.results[-1]
        name = self.document.search.metric.partition("/")[2]
        told = f"{100 * value:.2f} %" if name == "accuracy" else f"{name} {value:.4g}"
        return f"best {told} by trial {best.number} at step {budget}"


class Chronicle:
    """Tells of a search that is under way."""

    def __init__(self, home: Run, document: Document) -> None:
        self._home, self._document = home, document
        self.clock = Clock(home.path)
        self._display: Display = display_on(sys.stderr, "searching")
        self._told = self._missed = ""
        self._recorder = _parent(home, document)

    @property
    def parent_run(self) -> str | None:
        """MLflow's id of the parent run."""
        return None if self._recorder is None else self._recorder.mlflow_run_id

    def start(self, history: History) -> None:
        """Find the parent run, or make it."""
        if self._recorder is not None:
            self._recorder.start(history.steps, 0)
            self._recorder.artifact(self._home.config)
            self._recorder.say_ended(_ended(self._home, history))

    def tell(self, history: History) -> None:
        """Everything that is new since it was last told."""
        self.clock.note()
        standing = Standing(history, self._document, self.clock.seconds)
        best = standing.best()
        self._display.update(*standing.progress(), standing.text(), best != self._told)
        if best != self._told:
            self._told = best
            self._keep_best(history)
        if self._recorder is not None:
            with self._patiently():
                self._recorder.record(history.steps, _numbers(history))

    def say(self, text: str) -> None:
        """A line that stays."""
        self._display.say(text)

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file for the parent run."""
        if self._recorder is not None:
            with self._patiently():
                self._recorder.artifact(path, folder)

    def close(self, history: History, status: RunStatus) -> None:
        """The terminal as it was, and MLflow told how it ended."""
        self.tell(history)
        self._display.close()
        if self._recorder is not None:
            with self._patiently():
                self._recorder.say_ended(_ended(self._home, history))
                self._recorder.close(status)

    @contextmanager
    def _patiently(self) -> Iterator[None]:
        """A search does not end because MLflow is away for a while: it is told again, or by `--resume`."""
        try:
            yield
        except OSError as error:
            if str(error) != self._missed:
                self._missed = str(error)
                self._display.say(f"not in MLflow yet: {error}")

    def _keep_best(self, history: History) -> None:
        best = history.best()
        if best is not None:
            replace_text(self._home.path / BEST, as_yaml(self._document.trial(best.configuration)))


def _ended(home: Run, history: History) -> dict[str, RunStatus]:
    """How trials ended, by the ids of their runs: who was killed in between has not told MLflow."""
    return {trial_id(home, trial.number): ENDS[trial.status] for trial in history.trials if trial.status in ENDS}


def _numbers(history: History) -> Mapping[str, float]:
    best = history.best()
    states = Counter(trial.status for trial in history.trials)
    counts = {f"search/{status}": float(states[status]) for status in ("running", "stopped", "completed", "failed")}
    found = {**counts, "search/trials": float(len(history.trials))}
    return {**found, "search/best": best.results[-1][1]} if best else found


def _parent(home: Run, document: Document) -> Any:
    if document.base.tracking.uri is None:
        return None
    from metatrain.tracking import MLflowRecorder  # imports mlflow: seconds

    plain = document.plain()
    base, ours = as_plain(document.base), {key: plain[key] for key in ("search", "space")}
    said = labels(document.base) | {"metatrain.search": home.run_id}
    tracking = document.base.tracking
    return MLflowRecorder(tracking.uri or "", tracking.experiment, home.run_id, flat(base) | flat(ours), said)
