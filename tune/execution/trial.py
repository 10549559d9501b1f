"""Run one trial: the same run as `metatrain train`, which reports at each rung and asks whether to go on.

It keeps a run folder as every run does and resumes from its newest checkpoint, so it may be killed at any instant. What
it reports at a rung is read from its own records, where a restarted process finds it again.
"""

import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.exceptions import RayError

from cluster.executors import open_executor
from metatrain import runs
from metatrain.config.dry_run import dry_run, require_same
from metatrain.config.initial import find_initial
from metatrain.config.load import as_yaml, read_config
from metatrain.config.run_data import data_of, require_training_classes, split_as_before
from metatrain.errors import Diverged, RunLost, RunOwnedError, TaskFailed
from metatrain.job_secrets import adopt_secrets
from metatrain.runs import Run, checkpoints, describe_environment
from metatrain.runs.data_record import data_files, read_data, require_unchanged
from metatrain.runs.locations import create_run_at, open_run, release_run, run_exists
from metatrain.session import Session
from metatrain.settings import Config
from metatrain.setup import check_mlflow, prepare, recorders
from metatrain.tracking.jsonl import read_lines
from metatrain.trainer import start, train_segments
from metatrain.training.devices import driver_device
from metatrain.training.initial import save_initial
from metatrain.training.outer_loop import Best
from metatrain.training.worker import Worker, driver_worker
from metatrain.trust import require_same_code
from metatrain.types import RunStatus
from metatrain.yaml_config import load_yaml
from tasks.io.remote_fs import is_uri
from tune.execution.costs import measure_costs
from tune.execution.trial_spec import TrialSpec
from tune.history.trials import Status

_HANDOVER_S = 60.0
"""How long the process of a killed driver may still hold a trial's lock."""


class TrialReport(NamedTuple):
    """What a trial reports. value: the metric at `step`; None if it was interrupted, or failed for `reason` with
    `status`.
    """

    step: int
    value: float | None = None
    costs: Mapping[str, float] = {}
    reason: str = ""
    status: Status = "failed"


class IncompatibleSettings(Exception):
    """Settings that are incompatible with each other on any node."""


def run_trial(spec: TrialSpec, stopping: threading.Event) -> Iterator[TrialReport]:
    """Run a trial from rung to rung; a generator that is closed early leaves the run resumable.

    Raises what is not the configuration's fault and may succeed at another time or on another node: WorkersLost,
    OSError, and ValueError, of a node without its data, its GPU or its login, for example.
    """
    home: Run | None = None
    try:
        config = read_config(spec.config)
        check_mlflow(config)
        prepare(config)
        worker, home = _open_home(spec, config)
        with _lock(home), open_executor(worker) as executor:
            if spec.parent is not None:
                _inherit_checkpoint(home, worker, *spec.parent)
            recorder = recorders(worker.config, home, tags=spec.tags)
            yield from _train(spec, Session(worker, executor, recorder, home, stopping.is_set))
    except IncompatibleSettings as error:
        yield TrialReport(0, reason=str(error), status="unfit")
    except Diverged as error:
        yield TrialReport(0, reason=_one_line(error), status="nan")
    except TaskFailed as error:
        yield TrialReport(0, reason=_one_line(error))
    finally:
        if home is not None:
            release_run(home)


def _train(spec: TrialSpec, session: Session) -> Iterator[TrialReport]:
    """Train from rung to rung and yield a report at each; close the recorder at the end, whatever happens."""
    home = session.home
    status: RunStatus | None = "failed"
    try:
        state = start(session)
        spent = measure_costs(session.worker, spec.objectives) if spec.objectives else {}
        status = "interrupted"
        for rung in spec.rungs:
            if rung < state.step + (not state.validation_due):  # a process that is gone may have reported it
                status = "finished" if rung == spec.rungs[-1] else status
                yield TrialReport(rung, _read_metric(home, rung, spec.metric), spent)
        inherited = () if spec.parent is None else (spec.parent[1],)
        for _ in train_segments(session, state, (*inherited, *spec.rungs)):
            home.commit()
            if state.step in spec.rungs and not state.validation_due:
                status = "finished" if state.step == spec.rungs[-1] else status
                yield TrialReport(state.step, _read_metric(home, state.step, spec.metric), spent)
            else:
                yield TrialReport(state.step)
    except (Diverged, TaskFailed):
        status = "failed"
        raise
    except RunLost:
        status = None  # the new owner records
        raise
    finally:
        if status is not None:
            session.recorder.close(status)
            home.commit()


def _open_home(spec: TrialSpec, now: Config) -> tuple[Worker, Run]:
    """Open the trial's run as an earlier process left it, or create it; return it with the driver's worker.

    now: the trial's configuration. Of an earlier process's run, it decides where shards are computed and recorded.
    """
    if run_exists(spec.place):
        home = open_run(spec.place)
        plain = load_yaml(home.config, "a trial's configuration")
        require_same_code(plain, spec.config, str(home.config))
        kept = read_config(plain)
        if (data := read_data(home)) is None:
            kept = split_as_before(kept)
        elif (found := data_of(now)) is not None:
            require_unchanged(home, data, found)
        placed = {name: getattr(now.executor, name) for name in ("name", "workers", "address", "timeout", "deadline")}
        tracking = replace(kept.tracking, uri=now.tracking.uri)
        worker = driver_worker(replace(kept, executor=replace(kept.executor, **placed), tracking=tracking))
        worker.given = find_initial(worker, home)
        return worker, home
    if not is_uri(spec.place):
        shutil.rmtree(spec.place, ignore_errors=True)  # incomplete, from a process that was killed
    device = driver_device(now)  # outside the try: a node without the GPU is no fault of the configuration
    try:
        worker = dry_run(now, device)
    except ValueError as error:
        raise IncompatibleSettings(_one_line(error)) from error
    data = data_of(worker.config)
    require_training_classes(data)
    text, files = as_yaml(worker.config), data_files(data)
    fill, beat = partial(save_initial, worker.given), now.runs.heartbeat
    return worker, create_run_at(spec.place, spec.run_id, text, describe_environment(), beat, files, fill)


def _inherit_checkpoint(home: Run, worker: Worker, parent: str, step: int) -> None:
    """Copy the parent's checkpoint of `step` (parameters, optimisers, position in the tasks) and the best one before
    it, if that is still kept. IncompatibleSettings: they do not fit the configuration.
    """
    newest = checkpoints.newest(home.checkpoints)
    if newest is not None and newest.step >= step:
        return
    origin = open_run(parent)
    source = origin.checkpoints
    snapshot = checkpoints.load(source, step)
    try:
        require_same(snapshot["params"], worker)
    except ValueError as error:
        raise IncompatibleSettings(_one_line(error)) from error
    best = snapshot["best"]["step"]
    if best != step and not _copy_best(source, home.checkpoints, best, step):
        snapshot["best"] = vars(Best())
    _copy_checkpoint(source, home.checkpoints, step, snapshot)  # the newest last: it completes the copy
    release_run(origin)
    home.commit()


def _copy_best(source: Path, target: Path, best: int, step: int) -> bool:
    """Copy the best checkpoint if there is one before `step`; the parent's run may delete it at any moment."""
    if not (0 <= best < step and (source / f"{best:08d}").exists()):
        return False
    try:
        _copy_checkpoint(source, target, best, checkpoints.load(source, best))
    except (OSError, ValueError):
        return False
    return True


def _copy_checkpoint(source: Path, target: Path, step: int, snapshot: Mapping[str, Any]) -> None:
    checkpoints.save(target, step, snapshot, checkpoints.manifest(source, step)["extra"])


def _lock(home: Run) -> ExitStack:
    """Lock the run until the stack is left. A search has one driver, so an owner from before is dead or dying."""
    deadline, locked = time.monotonic() + _HANDOVER_S, ExitStack()
    while True:
        try:
            locked.enter_context(runs.lock_run(home, take_over=True))
            return locked
        except RunOwnedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_metric(home: Run, step: int, metric: str) -> float:
    """Read the metric recorded at `step`; JSON has null for nan."""
    lines = [line for line in read_lines(home.metrics) if line["step"] == step and "event" not in line]
    found = {key: value for line in lines for key, value in line.items()}
    if metric not in found:
        known = ", ".join(sorted(key for key in found if key.startswith("validation/")))
        raise ValueError(f"search.metric: {metric} was never reported: choose among {known}")
    return float("nan") if found[metric] is None else float(found[metric])


@ray.remote(num_cpus=0)
class StopSignal:
    """Tell all trials when the search stops. A trial that waits for it also notices when its driver is gone.

    It also hands them the secret variables of the search's job, which Ray and Tune would write into logs.
    """

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        import asyncio

        self._event, self._secrets = asyncio.Event(), dict(secrets or {})

    async def secrets(self) -> dict[str, str]:
        """Return the secret variables."""
        return self._secrets

    async def wait(self) -> None:
        """Return when it is set."""
        await self._event.wait()

    async def set(self) -> None:
        """Set it for everyone."""
        self._event.set()


class TrialActor(tune.Trainable):
    """Run trials one after another in one process: importing what they need takes longer than many a rung."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start the trial; do as little as possible here, because Tune reports errors of `step` in full and of this
        not.
        """
        self._stopping = threading.Event()
        with suppress(RayError):  # the search is gone, which the trial notices by itself
            adopt_secrets(ray.get(config["stop_signal"].secrets.remote()))
        threading.Thread(target=_wait_for_stop, args=(config["stop_signal"], self._stopping), daemon=True).start()
        self._reports = run_trial(TrialSpec(*config["spec"]), self._stopping)

    def step(self) -> dict[str, Any]:
        """Run to the next rung."""
        return {"report": tuple(next(self._reports, TrialReport(0)))}

    def cleanup(self) -> None:
        """Leave the run resumable."""
        self._reports.close()  # type: ignore[attr-defined]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Switch to another trial."""
        self.cleanup()
        self._reports = run_trial(TrialSpec(*new_config["spec"]), self._stopping)
        return True


def _wait_for_stop(stop_signal: Any, stopping: threading.Event) -> None:
    with suppress(RayError):
        ray.get(stop_signal.wait.remote())
    stopping.set()
