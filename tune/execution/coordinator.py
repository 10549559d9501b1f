"""Where a search and the processes of its trials meet: who is begun next, what became of whom, and why all ended."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ray.exceptions import RayActorError, RayError

from metatrain.errors import WorkersLost
from tune.execution.trial import Report
from tune.execution.trial_spec import Assignment
from tune.history.trials import Trial
from tune.study import Search

_PAUSE_S = 5.0
"""Before a trial that lost its process is begun again, the first time."""
_SURROUNDINGS = (OSError, ValueError, WorkersLost)
"""What a trial's process raises where not the trial is at fault: disks, logins, data, workers."""


@dataclass
class Desk:
    """What Tune's thread and ours share. The history is an immutable value: it is read without a lock.

    assign: what a trial's process is told. keep: makes the journal durable where the search is kept. at_once: trials
    that run at the same time. retries: how often one is begun again after its process was lost.
    """

    search: Search
    assign: Callable[[Trial], Assignment]
    keep: Callable[[], None]
    at_once: int
    retries: int
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when no more is to be begun."""
    trouble: str = ""
    """What ended the session, where it was neither its end nor its user."""
    running: dict[str, int] = field(default_factory=dict)
    """The trial that is lived by each of Tune's own."""
    started: set[str] = field(default_factory=set)
    """Those of Tune's own that have a process; the others wait for room."""
    lost: Counter[int] = field(default_factory=Counter)
    """How often each trial has lost its process since its last result."""
    _again: dict[int, float] = field(default_factory=dict)
    """When each of those may be begun again."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune keeps copies of what it is given, to go on from; nobody reads them."""
        return type(None), ()

    def next(self) -> Assignment | None:
        """A trial to be begun or gone on with; None for the time being."""
        while not self.closing.is_set() and len(self.running) < self.at_once:
            waiting = self._waiting()
            ready = [trial for trial in waiting if self._again.get(trial.number, 0.0) <= time.monotonic()]
            full = len(self.running) + len(waiting) >= self.at_once
            trial = ready[0] if ready else None if full else self.search.next_trial()
            if trial is None:
                return None
            self.keep()
            try:
                return self.assign(trial)
            except ValueError as error:  # settings that do not go together, of which the searcher learns
                self.search.failed(trial.number, " ".join(str(error).split()), "unfit")
                self.keep()
        return None

    def _waiting(self) -> list[Trial]:
        """Those that have begun, and that no process lives."""
        taken = set(self.running.values())
        return [trial for trial in self.search.running if trial.number not in taken]

    def is_over(self) -> bool:
        """Whether nothing is left to be begun, now or later."""
        ended = self.search.outcome() is not None and not self.search.running
        return self.closing.is_set() or ended

    def heard(self, number: int, report: Report) -> bool:
        """A trial's report, kept; whether it goes on."""
        if report.reason:
            self.search.failed(number, report.reason, report.status)
        elif report.value is not None:
            self.lost.pop(number, None)
            decision = self.search.report(number, report.step, report.value, report.costs)
            self.keep()
            return decision == "continue" and not self.closing.is_set()
        elif not self.closing.is_set():
            self.give_up("a trial was told to stop, and the search was not: its bell is gone")
        self.keep()
        return False

    def give_up(self, reason: str) -> None:
        """The first reason ends the session."""
        self.trouble = self.trouble or reason
        self.closing.set()

    def broke(self, number: int, error: BaseException | None) -> None:
        """A trial's process is gone, or what it needs is: it is begun again, from its newest checkpoint, a few times.

        A trial that takes its process with it has failed. What others would lack too (data, a login, workers) ends the
        session, and the trial goes on with the next.
        """
        self.lost[number] += 1
        self._again[number] = time.monotonic() + _PAUSE_S * 3 ** (self.lost[number] - 1)
        if self.lost[number] <= self.retries:
            return
        reason = f"{_in_short(error)} ({self.lost[number]} times)"
        if isinstance(error, _SURROUNDINGS):
            self.give_up(reason)
        else:
            self.search.failed(number, reason)
            self.keep()


def _in_short(error: BaseException | None) -> str:
    if error is None:
        return "its process ended"
    lines = str(error).strip().splitlines()
    told = lines[0 if isinstance(error, RayActorError) else -1].strip()[:300] if lines else ""
    return told if told and isinstance(error, (*_SURROUNDINGS, RayError)) else f"{type(error).__name__}: {told}"
