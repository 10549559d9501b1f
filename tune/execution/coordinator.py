"""Coordinate a study with the processes of its trials: what to run next, how to handle reports and failures."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ray.exceptions import RayActorError, RayError

from metatrain.errors import WorkersLost
from tune.execution.trial import TrialReport
from tune.execution.trial_spec import TrialSpec
from tune.history.trials import Trial
from tune.study import Study

_PAUSE_S = 5.0
"""Pause before a trial that lost its process is restarted, the first time."""
_ENVIRONMENT_ERRORS = (OSError, ValueError, WorkersLost)
"""Errors that are not the trial's fault: disks, logins, data, workers."""


@dataclass
class Coordinator:
    """Share state between Ray Tune's thread and ours. The history is an immutable value: it is read without a lock.

    make_spec: returns what a trial's process needs. persist: makes the journal durable where the search is kept.
    at_once: the number of trials that run at the same time. retries: how often a trial is restarted after its process
    was lost.
    """

    search: Study
    make_spec: Callable[[Trial], TrialSpec]
    persist: Callable[[], None]
    at_once: int
    retries: int
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when no more trials are to begin."""
    failure: str = ""
    """Why the session failed; empty if it did not."""
    running: dict[str, int] = field(default_factory=dict)
    """The number of the trial that each of Ray Tune's own runs, by Tune's id."""
    started: set[str] = field(default_factory=set)
    """Tune's ids that have a process; the others wait for room."""
    lost: Counter[int] = field(default_factory=Counter)
    """How often each trial has lost its process since its last result."""
    _retry_at: dict[int, float] = field(default_factory=dict)
    """When each of those may be restarted."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Pickle as None: Tune saves copies of what it is given, which are never read."""
        return type(None), ()

    def next_spec(self) -> TrialSpec | None:
        """Return a trial to begin or to resume; None for the time being."""
        while not self.closing.is_set() and len(self.running) < self.at_once:
            waiting = self._waiting()
            ready = [trial for trial in waiting if self._retry_at.get(trial.number, 0.0) <= time.monotonic()]
            full = len(self.running) + len(waiting) >= self.at_once
            trial = ready[0] if ready else None if full else self.search.next_trial()
            if trial is None:
                return None
            self.persist()
            try:
                return self.make_spec(trial)
            except ValueError as error:  # incompatible settings, which the searcher learns from
                self.search.fail(trial.number, " ".join(str(error).split()), "unfit")
                self.persist()
        return None

    def _waiting(self) -> list[Trial]:
        """Return the trials that have begun and have no process."""
        taken = set(self.running.values())
        return [trial for trial in self.search.running if trial.number not in taken]

    def is_over(self) -> bool:
        """Return whether no trial is left to begin, now or later."""
        ended = self.search.stop_reason() is not None and not self.search.running
        return self.closing.is_set() or ended

    def handle_report(self, number: int, report: TrialReport) -> bool:
        """Record a trial's report; return whether the trial goes on."""
        if report.reason:
            self.search.fail(number, report.reason, report.status)
        elif report.value is not None:
            self.lost.pop(number, None)
            decision = self.search.report(number, report.step, report.value, report.costs)
            self.persist()
            return decision == "continue" and not self.closing.is_set()
        elif not self.closing.is_set():
            self.abort("a trial was stopped and the search was not: its stop signal is gone")
        self.persist()
        return False

    def abort(self, reason: str) -> None:
        """End the session as failed; the first reason counts."""
        self.failure = self.failure or reason
        self.closing.set()

    def handle_lost_process(self, number: int, error: BaseException | None) -> None:
        """Restart a trial whose process is gone, from its newest checkpoint, at most `retries` times.

        After that the trial has failed. If the error is one that every trial would meet (data, a login, workers), the
        session fails instead, and the trial is resumed by the next session.
        """
        self.lost[number] += 1
        self._retry_at[number] = time.monotonic() + _PAUSE_S * 3 ** (self.lost[number] - 1)
        if self.lost[number] <= self.retries:
            return
        reason = f"{_summarize(error)} ({self.lost[number]} times)"
        if isinstance(error, _ENVIRONMENT_ERRORS):
            self.abort(reason)
        else:
            self.search.fail(number, reason)
            self.persist()


def _summarize(error: BaseException | None) -> str:
    if error is None:
        return "its process ended"
    lines = str(error).strip().splitlines()
    text = lines[0 if isinstance(error, RayActorError) else -1].strip()[:300] if lines else ""
    return text if text and isinstance(error, (*_ENVIRONMENT_ERRORS, RayError)) else f"{type(error).__name__}: {text}"
