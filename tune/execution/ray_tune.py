"""A search under way: Ray Tune gives trials processes and resources, and asks us what to try and who goes on.

Tune keeps nothing that matters. The journal is the truth, each trial keeps its own run, and after whatever stopped a
session the next one begins a new Tune experiment with the trials that the journal holds as running.
"""

import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune import TuneError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune.execution.coordinator import Coordinator
from tune.execution.placement import TrialResources, explain_shortage, max_concurrent_trials
from tune.execution.trial import Report, StopSignal, TrialActor

_GRACE_S = 120.0
"""How long trials may take to come to a halt before they are ended as they are."""
_ROOM_S, _BUSY_S = 2.0, 60.0
"""How often the cluster is looked at, and how long a trial waits before that is said."""
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the old one can be silenced
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # of what Tune keeps nothing is read again
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class CoordinatorSearcher(Searcher):
    """Tune's searcher: hands out what the desk has."""

    def __init__(self, coordinator: Coordinator, stop_signal: Any) -> None:
        super().__init__()
        self._coordinator, self._stop_signal = coordinator, stop_signal

    def suggest(self, trial_run_id: str) -> Any:
        """None: ask again later."""
        assignment = self._coordinator.next_spec()
        if assignment is None:
            return Searcher.FINISHED if self._coordinator.is_over() else None
        self._coordinator.running[trial_run_id] = assignment.number
        return {"assignment": tuple(assignment), "bell": self._stop_signal}

    def on_trial_result(self, trial_run_id: str, result: dict[str, Any]) -> None:
        """The scheduler hears of every result; this only of those whose trial goes on."""

    def on_trial_complete(self, trial_run_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Its place is free."""
        self._coordinator.running.pop(trial_run_id, None)

    def save(self, checkpoint_path: str) -> None:
        """The journal is kept elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Likewise."""


class CoordinatorScheduler(FIFOScheduler):
    """Tune's scheduler: asks the desk."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._coordinator = coordinator

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        number = self._coordinator.running.get(trial.trial_run_id)
        goes_on = number is not None and self._coordinator.handle_report(number, Report(*result["report"]))
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Its process is gone, or raised what was not foreseen."""
        number = self._coordinator.running.get(trial.trial_run_id)
        if number is not None:
            self._coordinator.handle_lost_process(number, _raised(trial))


class StartCallback(tune.Callback):
    """Notes which trials have a process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """It has one."""
        self._coordinator.started.add(trial.trial_run_id)


class SessionStopper(tune.Stopper):
    """Ends the session where trials do not come to a halt by themselves, or wait for resources."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator, self._since = coordinator, 0.0

    def __call__(self, trial_run_id: str, result: dict[str, Any]) -> bool:
        """The scheduler decides about single trials."""
        return False

    def stop_all(self) -> bool:
        """Some time after the desk has closed."""
        if not self._coordinator.closing.is_set():
            return False
        self._since = self._since or time.monotonic()
        living = self._coordinator.running.keys() & self._coordinator.started
        return not living or time.monotonic() - self._since > _GRACE_S


def run_trials(
    coordinator: Coordinator, trial_resources: TrialResources, attend: Callable[[], bool], room: "CapacityMonitor"
) -> None:
    """Run trials until the search is over; `attend` is called twice a second, and says whether to stop.

    Raises what went wrong in Tune's thread. When it returns, no trial is left running.
    """
    os.environ.update(_QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    stop_signal = StopSignal.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    if attend():  # it may have had its minutes before
        coordinator.closing.set()
        return
    session = _begun(lambda: _tuned(coordinator, trial_resources, stop_signal))
    try:
        while not (session.done() or coordinator.closing.is_set()):
            if attend():
                break
            if why := room.given_up(waiting=bool(coordinator.running.keys() - coordinator.started)):
                coordinator.abort(why)
            coordinator.at_once = room.trials or coordinator.at_once
            wait([session], 0.5)
    finally:
        coordinator.closing.set()
        stop_signal.ring.remote()
        if not isinstance(sys.exception(), SystemExit):  # a second Ctrl-C waits for nobody
            session.result()


class CapacityMonitor:
    """Watches how much room the cluster has for trials: it may come back, until a deadline; and it may grow."""

    def __init__(self, needed: TrialResources, wanted: int, deadline: float, say: Callable[[str], None]) -> None:
        """wanted: trials at the same time, 0 for as many as there is room for."""
        self._needed, self._wanted, self._deadline, self._say = needed, wanted, deadline, say
        self._asked = self._since = self._waits = 0.0
        self.trials = 0
        """That have room at the same time; 0 where it is not known."""

    def given_up(self, waiting: bool) -> str:
        """Why no more is waited for; "" while there is hope. waiting: whether a trial has begun and has no process."""
        now = time.monotonic()
        if now - self._asked < _ROOM_S:
            return ""
        self._asked, problem = now, explain_shortage(self._needed)
        if problem is None:
            if self._since:
                self._say("there is room again")
            self._since = 0.0
            self.trials = max_concurrent_trials(self._needed, self._wanted)
            self._note(waiting, now)
            return ""
        if not self._since:
            self._since = now
            self._say(f"no room for a trial: {problem}; waiting")
        late = now - self._since > self._deadline
        return f"{problem}, for longer than executor.deadline, {self._deadline:g} s" if late else ""

    def _note(self, waiting: bool, now: float) -> None:
        """Says once that a trial waits, where the cluster is others' for the time being."""
        if not waiting:
            self._waits = 0.0
        elif not self._waits:
            self._waits = now
        elif now - self._waits > _BUSY_S:
            self._waits = math.inf
            self._say("no room for a trial: what it needs is in use, by others or by trials that end; waiting")


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


def _tuned(coordinator: Coordinator, trial_resources: TrialResources, stop_signal: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="metatrain-search-") as aside, _unwrapped():
        tune.Tuner(
            tune.with_resources(TrialActor, trial_resources.placement()),
            tune_config=tune.TuneConfig(
                search_alg=CoordinatorSearcher(coordinator, stop_signal),
                scheduler=CoordinatorScheduler(coordinator),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=aside,
                stop=SessionStopper(coordinator),
                callbacks=[StartCallback(coordinator)],
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


def _raised(trial: Any) -> BaseException | None:
    """What ended a trial's process; None where nobody knows. Tune keeps it in a file beside the driver, and its own
    `get_error` looks for it elsewhere.
    """
    if trial.pickled_error_file is None:
        return None
    error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, BaseException) else error if isinstance(error, BaseException) else None
