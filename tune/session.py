"""A search under way: Ray Tune gives trials processes and resources, and asks us what to try and who goes on.

Tune keeps nothing that matters. The journal is the truth, each trial keeps its own run, and after whatever stopped a
session the next one begins a new Tune experiment with the trials that the journal holds as running.
"""

import logging
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune
from ray.tune import TuneError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metatrain.runs import RunOwnedError
from metatrain.types import WorkersLost
from tune.assignment import Assignment
from tune.history import Trial
from tune.resources import Needs, lacking
from tune.search import Search
from tune.trial import Bell, Report, TrialActor

_GRACE_S = 120.0
"""How long trials may take to come to a halt before they are ended as they are."""
_PAUSE_S = 5.0
"""Before a trial that lost its process is begun again."""
_ROOM_S = 2.0
"""How often the cluster is looked at."""
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the old one can be silenced
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # of what Tune keeps nothing is read again
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


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
    _after: float = 0.0

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune keeps copies of what it is given, to go on from; nobody reads them."""
        return type(None), ()

    def next(self) -> Assignment | None:
        """A trial to be begun or gone on with; None for the time being."""
        if self.closing.is_set() or len(self.running) >= self.at_once or time.monotonic() < self._after:
            return None
        while (trial := self._waiting() or self.search.next_trial()) is not None:
            self.keep()
            try:
                return self.assign(trial)
            except ValueError as error:  # settings that do not go together, of which the searcher learns
                self.search.failed(trial.number, " ".join(str(error).split()))
                self.keep()
        return None

    def _waiting(self) -> Trial | None:
        """One that has begun, and that no process lives."""
        taken = set(self.running.values())
        return next((trial for trial in self.search.running if trial.number not in taken), None)

    def is_over(self) -> bool:
        """Whether nothing is left to be begun, now or later."""
        ended = self.search.outcome() is not None and not self.search.running
        return self.closing.is_set() or ended

    def heard(self, number: int, report: Report) -> bool:
        """A trial's report, kept; whether it goes on."""
        if report.reason:
            self.search.failed(number, report.reason)
        elif report.value is not None:
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

        A trial that takes its process with it has failed. What others would lack too ends the session.
        """
        self.lost[number] += 1
        self._after = time.monotonic() + _PAUSE_S * 3 ** (self.lost[number] - 1)
        if self.lost[number] <= self.retries:
            return
        reason = f"{_in_short(error)} ({self.lost[number]} times)"
        if isinstance(error, (OSError, WorkersLost, RunOwnedError)):
            self.give_up(reason)
        else:
            self.search.failed(number, reason)
            self.keep()


class Suggestions(Searcher):
    """Tune's searcher: hands out what the desk has."""

    def __init__(self, desk: Desk, bell: Any) -> None:
        super().__init__()
        self._desk, self._bell = desk, bell

    def suggest(self, trial_id: str) -> Any:
        """None: ask again later."""
        assignment = self._desk.next()
        if assignment is None:
            return Searcher.FINISHED if self._desk.is_over() else None
        self._desk.running[trial_id] = assignment.number
        return {"assignment": tuple(assignment), "bell": self._bell}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler hears of every result; this only of those whose trial goes on."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Its place is free."""
        self._desk.running.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """The journal is kept elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Likewise."""


class Decisions(FIFOScheduler):
    """Tune's scheduler: asks the desk."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._desk = desk

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        number = self._desk.running.get(trial.trial_id)
        goes_on = number is not None and self._desk.heard(number, Report(*result["report"]))
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Its process is gone, or raised what was not foreseen."""
        number = self._desk.running.get(trial.trial_id)
        if number is not None:
            self._desk.broke(number, trial.get_error())


class Starts(tune.Callback):
    """Notes which trials have a process."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """It has one."""
        self._desk.started.add(trial.trial_id)


class Halt(tune.Stopper):
    """Ends the session where trials do not come to a halt by themselves, or wait for resources."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._since = desk, 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """The scheduler decides about single trials."""
        return False

    def stop_all(self) -> bool:
        """Some time after the desk has closed."""
        if not self._desk.closing.is_set():
            return False
        self._since = self._since or time.monotonic()
        living = self._desk.running.keys() & self._desk.started
        return not living or time.monotonic() - self._since > _GRACE_S


def conduct(desk: Desk, needs: Needs, attend: Callable[[], bool], room: "Room") -> None:
    """Run trials until the search is over; `attend` is called twice a second, and says whether to stop.

    Raises what went wrong in Tune's thread. When it returns, no trial is left running.
    """
    os.environ.update(_QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    bell = Bell.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    session = _begun(lambda: _tuned(desk, needs, bell))
    try:
        while not (session.done() or desk.closing.is_set()):
            if attend():
                break
            if why := room.given_up():
                desk.give_up(why)
            wait([session], 0.5)
    finally:
        desk.closing.set()
        bell.ring.remote()
        if not isinstance(sys.exception(), SystemExit):  # a second Ctrl-C waits for nobody
            session.result()


class Room:
    """Watches whether the cluster still has room for trials: it may come back, until a deadline."""

    def __init__(self, needed: Needs, deadline: float, say: Callable[[str], None]) -> None:
        self._needed, self._deadline, self._say = needed, deadline, say
        self._asked = self._since = 0.0

    def given_up(self) -> str:
        """Why no more is waited for; "" while there is hope."""
        now = time.monotonic()
        if now - self._asked < _ROOM_S:
            return ""
        self._asked, problem = now, lacking(self._needed)
        if problem is None:
            if self._since:
                self._say("there is room again")
            self._since = 0.0
            return ""
        if not self._since:
            self._since = now
            self._say(f"no room for a trial: {problem}; waiting")
        late = now - self._since > self._deadline
        return f"{problem}, for longer than executor.deadline, {self._deadline:g} s" if late else ""


def _begun(call: Callable[[], None]) -> "Future[None]":
    """In another thread, since in the main one Tune would take the signals for itself; it ends with the process."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            call()
            future.set_result(None)
        except BaseException as error:  # noqa: BLE001 (raised again by who waits)
            future.set_exception(error)

    threading.Thread(target=run, name="tune", daemon=True).start()
    return future


def _tuned(desk: Desk, needs: Needs, bell: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="metatrain-search-") as aside, _unwrapped():
        tune.Tuner(
            tune.with_resources(TrialActor, needs.placement()),
            tune_config=tune.TuneConfig(
                search_alg=Suggestions(desk, bell), scheduler=Decisions(desk), num_samples=-1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=aside,
                stop=Halt(desk),
                callbacks=[Starts(desk)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()


@contextmanager
def _unwrapped() -> Iterator[None]:
    """What we raised ourselves in Tune's loop, not its account of it."""
    try:
        yield
    except TuneError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from error


def _in_short(error: BaseException | None) -> str:
    lines = str(error or "").strip().splitlines()
    return lines[-1].strip()[:300] if lines else "its process ended"
