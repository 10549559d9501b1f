"""Where a search and the processes of its trials meet: who is begun next, what became of whom, and why all ended."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ray.exceptions import RayActorError, RayError

from metatrain.errors import WorkersLost
from tune.execution.trial import Report
from tune.execution.trial_spec import TrialSpec
from tune.history.trials import Trial
from tune.study import Study

_PAUSE_S = 5.0
"""Before a trial that lost its process is begun again, the first time."""
_SURROUNDINGS = (OSError, ValueError, WorkersLost)
"""What a trial's process raises where not the trial is at fault: disks, logins, data, workers."""


@dataclass
class Coordinator:
    """What Tune's thread and ours share. The history is an immutable value: it is read without a lock.

    assign: what a trial's process is told. keep: makes the journal durable where the search is kept. at_once: trials
    that run at the same time. retries: how often one is begun again after its process was lost.
    """

    search: Study
    assign: Callable[[Trial], TrialSpec]
    keep: Callable[[], None]
    at_once: int
    retries: int
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when no more is to be begun."""
    failure: str = ""
    """What ended the session, where it was neither its end nor its user."""
    running: dict[str, int] = field(default_factory=dict)
    """The trial that is lived by each of Tune's own."""
    started: set[str] = field(default_factory=set)
    """Those of Tune's own that have a process; the others wait for room."""
    lost: Counter[int] = field(default_factory=Counter)
    """How often each trial has lost its process since its last result."""
    _retry_at: dict[int, float] = field(default_factory=dict)
    """When each of those may be begun again."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune keeps copies of what it is given, to go on from; nobody reads them."""
        return type(None), ()

    def next_spec(self) -> TrialSpec | None:
        """A trial to be begun or gone on with; None for the time being."""
        while not self.closing.is_set() and len(self.running) < self.at_once:
            waiting = self._waiting()
            ready = [trial for trial in waiting if self._retry_at.get(trial.number, 0.0) <= time.monotonic()]
            full = len(self.running) + len(waiting) >= self.at_once
            trial = ready[0] if ready else None if full else self.search.next_trial()
            if trial is None:
                return None
            self.keep()
            try:
                return self.assign(trial)
            except ValueError as error:  # settings that do not go together, of which the searcher learns
                self.search.fail(trial.number, " ".join(str(error).split()), "unfit")
                self.keep()
        return None

    def _waiting(self) -> list[Trial]:
        """Those that have begun, and that no process lives."""
        taken = set(self.running.values())
        return [trial for trial in self.search.running if trial.number not in taken]

    def is_over(self) -> bool:
        """Whether nothing is left to be begun, now or later."""
        ended = self.search.stop_reason() is not None and not self.search.running
        return self.closing.is_set() or ended

    def handle_report(self, number: int, report: Report) -> bool:
        """A trial's report, kept; whether it goes on."""
        if report.reason:
            self.search.fail(number, report.reason, report.status)
        elif report.value is not None:
            self.lost.pop(number, None)
            decision = self.search.report(number, report.step, report.value, report.costs)
            self.keep()
            return decision == "continue" and not self.closing.is_set()
        elif not self.closing.is_set():
            self.abort("a trial was told to stop, and the search was not: its bell is gone")
        self.keep()
        return False

    def abort(self, reason: str) -> None:
        """The first reason ends the session."""
        self.failure = self.failure or reason
        self.closing.set()

    def handle_lost_process(self, number: int, error: BaseException | None) -> None:
        """A trial's process is gone, or what it needs is: it is begun again, from its newest checkpoint, a few times.

        A trial that takes its process with it has failed. What others would lack too (data, a login, workers) ends the
        session, and the trial goes on with the next.
        """
        self.lost[number] += 1
        self._retry_at[number] = time.monotonic() + _PAUSE_S * 3 ** (self.lost[number] - 1)
        if self.lost[number] <= self.retries:
            return
        reason = f"{_in_short(error)} ({self.lost[number]} times)"
        if isinstance(error, _SURROUNDINGS):
            self.abort(reason)
        else:
            self.search.fail(number, reason)
            self.keep()


def _in_short(error: BaseException | None) -> str:
    if error is None:
        return "its process ended"
    lines = str(error).strip().splitlines()
    told = lines[0 if isinstance(error, RayActorError) else -1].strip()[:300] if lines else ""
    return told if told and isinstance(error, (*_SURROUNDINGS, RayError)) else f"{type(error).__name__}: {told}"
