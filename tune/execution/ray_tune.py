"""Run the trials of a study on Ray Tune, which provides processes and resources and asks our coordinator for decisions.

Nothing that Tune keeps matters: the journal is the truth, each trial keeps its own run, and after an interruption the
next session begins a new Tune experiment with the trials that the journal holds as running.
"""

import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune import TuneError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metatrain.errors import WorkersLost
from metatrain.job_secrets import held_secrets
from tune.execution.coordinator import Coordinator
from tune.execution.placement import TrialResources, explain_shortage, max_concurrent_trials
from tune.execution.trial import StopSignal, TrialActor, TrialReport

_GRACE_S = 120.0
"""How long trials may take to stop by themselves before they are killed."""
_ROOM_S, _BUSY_S = 2.0, 60.0
"""How often the cluster is looked at, and how long a trial waits before a message says so."""
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the old one can be silenced
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # nothing that Tune keeps is read again
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class CoordinatorSearcher(Searcher):
    """Implement Tune's searcher: hand out the coordinator's trials."""

    def __init__(self, coordinator: Coordinator, stop_signal: Any) -> None:
        super().__init__()
        self._coordinator, self._stop_signal = coordinator, stop_signal

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial; None: ask again later."""
        spec = self._coordinator.next_spec()
        if spec is None:
            return Searcher.FINISHED if self._coordinator.is_over() else None
        self._coordinator.running[trial_id] = spec.number
        return {"spec": tuple(spec), "stop_signal": self._stop_signal}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Free the trial's place."""
        self._coordinator.running.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal has everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as in `save`."""


class CoordinatorScheduler(FIFOScheduler):
    """Implement Tune's scheduler: ask the coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._coordinator = coordinator

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether the trial goes on."""
        number = self._coordinator.running.get(trial.trial_id)
        goes_on = number is not None and self._coordinator.handle_report(number, TrialReport(*result["report"]))
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tell the coordinator that a process is gone or raised an unexpected error."""
        number = self._coordinator.running.get(trial.trial_id)
        if number is not None:
            self._coordinator.handle_lost_process(number, _load_error(trial))


class StartCallback(tune.Callback):
    """Record which trials have a process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record that this trial has one."""
        self._coordinator.started.add(trial.trial_id)


class SessionStopper(tune.Stopper):
    """End the session if trials do not stop by themselves, or wait for resources."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator, self._since = coordinator, 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: the scheduler decides about single trials."""
        return False

    def stop_all(self) -> bool:
        """Return whether the session ends now, some time after the coordinator has closed."""
        if not self._coordinator.closing.is_set():
            return False
        self._since = self._since or time.monotonic()
        living = self._coordinator.running.keys() & self._coordinator.started
        return not living or time.monotonic() - self._since > _GRACE_S


def run_trials(
    coordinator: Coordinator, trial_resources: TrialResources, poll: Callable[[], bool], room: "CapacityMonitor"
) -> None:
    """Run trials until the study is over; `poll` is called twice a second and returns whether to stop.

    Raises what failed in Tune's thread. When it returns, no trial is left running.
    """
    os.environ.update(_QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    stop_signal = StopSignal.options(scheduling_strategy=here).remote(held_secrets())  # type: ignore[attr-defined]
    if poll():  # its time may have been over before
        coordinator.closing.set()
        return
    session = _run_in_thread(lambda: _run_tuner(coordinator, trial_resources, stop_signal))
    try:
        while not (session.done() or coordinator.closing.is_set()):
            if poll():
                break
            if why := room.check(waiting=bool(coordinator.running.keys() - coordinator.started)):
                coordinator.abort(why)
            coordinator.at_once = room.trials or coordinator.at_once
            wait([session], 0.5)
    finally:
        coordinator.closing.set()
        if not isinstance(sys.exception(), WorkersLost):  # without Ray nobody hears it
            stop_signal.set.remote()
            if not isinstance(sys.exception(), SystemExit):  # a second Ctrl-C does not wait
                session.result()


class CapacityMonitor:
    """Watch how many trials the cluster has room for: nodes may return until a deadline, and the cluster may grow."""

    def __init__(self, needed: TrialResources, wanted: int, deadline: float, say: Callable[[str], None]) -> None:
        """wanted: trials at the same time, 0 for as many as there is room for."""
        self._needed, self._wanted, self._deadline, self._say = needed, wanted, deadline, say
        self._asked = self._since = self._waits = 0.0
        self.trials = 0
        """Trials that have room at the same time; 0 if unknown."""

    def check(self, waiting: bool) -> str:
        """Return why to stop waiting for room, or an empty text. waiting: a trial has begun and has no process."""
        now = time.monotonic()
        if now - self._asked < _ROOM_S:
            return ""
        self._asked, problem = now, explain_shortage(self._needed)
        if problem is None:
            if self._since:
                self._say("there is room again")
            self._since = 0.0
            self.trials = max_concurrent_trials(self._needed, self._wanted)
            self._report_waiting(waiting, now)
            return ""
        if not self._since:
            self._since = now
            self._say(f"no room for a trial: {problem}; waiting")
        late = now - self._since > self._deadline
        return f"{problem}, for longer than executor.deadline, {self._deadline:g} s" if late else ""

    def _report_waiting(self, waiting: bool, now: float) -> None:
        """Say once that a trial waits because the cluster is busy."""
        if not waiting:
            self._waits = 0.0
        elif not self._waits:
            self._waits = now
        elif now - self._waits > _BUSY_S:
            self._waits = math.inf
            self._say("no room for a trial: what it needs is in use, by others or by trials that end; waiting")


def _run_in_thread(call: Callable[[], None]) -> "Future[None]":
    """Run in another thread, because in the main one Tune would handle the signals; it ends with the process."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            call()
            future.set_result(None)
        except BaseException as error:  # noqa: BLE001 (raised again by the waiting thread)
            future.set_exception(error)

    threading.Thread(target=run, name="tune", daemon=True).start()
    return future


def _run_tuner(coordinator: Coordinator, trial_resources: TrialResources, stop_signal: Any) -> None:
    """Run Tune's loop; raise our own exception from it instead of Tune's wrapper."""
    with tempfile.TemporaryDirectory(prefix="metatrain-search-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(TrialActor, tune.PlacementGroupFactory([dict(bundle) for bundle in trial_resources])),
            tune_config=tune.TuneConfig(
                search_alg=CoordinatorSearcher(coordinator, stop_signal),
                scheduler=CoordinatorScheduler(coordinator),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                stop=SessionStopper(coordinator),
                callbacks=[StartCallback(coordinator)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except TuneError as error:
            if error.__cause__ is None:
                raise
            raise error.__cause__ from error


def _load_error(trial: Any) -> BaseException | None:
    """Return what ended a trial's process; None if unknown. Tune keeps it in a file beside the driver, and its own
    `get_error` looks for it elsewhere.
    """
    if trial.pickled_error_file is None:
        return None
    error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, BaseException) else error if isinstance(error, BaseException) else None
