"""One trial: the same run as `metatrain train` makes, that stops at each rung to be told whether it goes on.

It keeps a run folder as every run does and goes on from its newest checkpoint, so it may be killed at any instant. What
it reports at a rung is read from its own records, where a trial that was killed after them finds it again.
"""

import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray import tune
from ray.exceptions import RayError

from cluster.executor import RayExecutor
from metatrain import runs
from metatrain.config.dry_run import require_same
from metatrain.config.load import as_yaml, load_config, read_config
from metatrain.errors import Diverged, RunLost, RunOwnedError, TaskFailed
from metatrain.runs import Run, checkpoints, environment
from metatrain.runs.locations import is_home, leave, make_home, open_home
from metatrain.settings import Config
from metatrain.setup import decided, prepare, reach, recorders
from metatrain.tracking.jsonl import read_lines
from metatrain.trainer import opened, stretches
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import Best
from metatrain.training.worker import Worker, device_for
from metatrain.types import Executor, RunStatus
from tasks.io.remote_fs import is_uri
from tune.execution.costs import costs
from tune.execution.trial_spec import TrialSpec
from tune.history.trials import Status

_HANDOVER_S = 60.0
"""How long the process of a driver that was killed may still hold a trial."""


class Report(NamedTuple):
    """What a trial says. value: the metric at `step`; None where it was interrupted, or came to grief for `reason`, and
    so ended as `status`.
    """

    step: int
    value: float | None = None
    costs: Mapping[str, float] = {}
    reason: str = ""
    status: Status = "failed"


class IncompatibleSettings(Exception):
    """Settings that do not go together, wherever they are tried."""


def run_trial(assignment: TrialSpec, stopping: threading.Event) -> Iterator[Report]:
    """A trial's life, from rung to rung; a generator that is closed early leaves all in order.

    Raises what is not the configuration's fault, and may go well another time or on another node: WorkersLost, OSError,
    and ValueError, of a node without its data, its GPU or its login, say.
    """
    home: Run | None = None
    try:
        asked = read_config(assignment.config)
        reach(asked)
        prepare(asked)
        home, settings = _home(assignment, asked)
        with _owned(home), executing(settings) as executor:
            if assignment.parent is not None:
                _inherit(home, settings, *assignment.parent)
            yield from _trained(assignment, settings, home, executor, stopping)
    except IncompatibleSettings as error:
        yield Report(0, reason=str(error), status="unfit")
    except Diverged as error:
        yield Report(0, reason=_in_one_line(error), status="nan")
    except TaskFailed as error:
        yield Report(0, reason=_in_one_line(error))
    finally:
        if home is not None:
            leave(home)


def _trained(
    assignment: TrialSpec, settings: Config, home: Run, executor: Executor, stopping: threading.Event
) -> Iterator[Report]:
    recorder = recorders(settings, home, tags=assignment.tags)
    status: RunStatus | None = "failed"
    try:
        session, state = opened(settings, executor, recorder, home)
        spent = costs(session.worker, assignment.objectives) if assignment.objectives else {}
        status = "interrupted"
        for rung in assignment.rungs:
            if rung <= state.step:  # it was reported, or nearly, by a process that is no more
                status = "finished" if rung == assignment.rungs[-1] else status
                yield Report(rung, _value(home, rung, assignment.metric), spent)
        inherited = () if assignment.parent is None else (assignment.parent[1],)
        for _ in stretches(session, state, stopping.is_set, (*inherited, *assignment.rungs)):
            home.commit()
            if state.step in assignment.rungs:
                status = "finished" if state.step == assignment.rungs[-1] else status
                yield Report(state.step, _value(home, state.step, assignment.metric), spent)
            else:
                yield Report(state.step)
    except (Diverged, TaskFailed):
        status = "failed"
        raise
    except RunLost:
        status = None  # what is recorded is the new owner's affair
        raise
    finally:
        if status is not None:
            recorder.close(status)
            home.commit()


@contextmanager
def executing(settings: Config) -> Iterator[Executor]:
    """The executor that `settings` name; its workers are within the trial's placement group."""
    if settings.executor.name == "in_process":
        yield InProcess(Worker(settings, device_for(settings.executor.gpus_per_worker)))
        return
    executor = RayExecutor(settings, ray.util.get_current_placement_group())
    try:
        yield executor
    finally:
        executor.close()


def _home(assignment: TrialSpec, now: Config) -> tuple[Run, Config]:
    """The trial's run, as an earlier process left it or a new one, and its configuration, computed as is `now` said."""
    if is_home(assignment.place):
        home = open_home(assignment.place)
        kept = load_config(home.config)
        told = {name: getattr(now.executor, name) for name in ("name", "workers", "address", "timeout", "deadline")}
        tracking = replace(kept.tracking, uri=now.tracking.uri)
        return home, replace(kept, executor=replace(kept.executor, **told), tracking=tracking)
    if not is_uri(assignment.place):
        shutil.rmtree(assignment.place, ignore_errors=True)  # half made, by a process that was killed
    settings = _fitting(now)
    heartbeat = settings.runs.heartbeat
    return make_home(assignment.place, assignment.run_id, as_yaml(settings), environment(), heartbeat), settings


def _fitting(settings: Config) -> Config:
    """With everything decided. Unfit: it cannot be trained."""
    try:
        return decided(settings)
    except ValueError as error:
        raise IncompatibleSettings(_in_one_line(error)) from error


def _inherit(home: Run, settings: Config, parent: str, step: int) -> None:
    """The parent's checkpoint of `step`: parameters, optimisers, how far its tasks are used up; and the best before it,
    where that is still kept. Unfit: they are not laid out as `settings` have them.
    """
    newest = checkpoints.newest(home.checkpoints)
    if newest is not None and newest.step >= step:
        return
    origin = open_home(parent)
    source = origin.checkpoints
    snapshot = checkpoints.load(source, step)
    try:
        require_same(snapshot["params"], Worker(settings, torch.device("cpu")))
    except ValueError as error:
        raise IncompatibleSettings(_in_one_line(error)) from error
    best = snapshot["best"]["step"]
    if best != step and not _copied_best(source, home.checkpoints, best, step):
        snapshot["best"] = vars(Best())
    _copied(source, home.checkpoints, step, snapshot)  # the one that is gone on from last, so that all is there then
    leave(origin)
    home.commit()


def _copied_best(source: Path, target: Path, best: int, step: int) -> bool:
    """Whether there was one before `step`; its run, where that goes on, may tidy it away at any moment."""
    if not (0 <= best < step and (source / f"{best:08d}").exists()):
        return False
    try:
        _copied(source, target, best, checkpoints.load(source, best))
    except (OSError, ValueError):
        return False
    return True


def _copied(source: Path, target: Path, step: int, snapshot: Mapping[str, Any]) -> None:
    checkpoints.save(target, step, snapshot, checkpoints.manifest(source, step)["extra"])


@contextmanager
def _owned(home: Run) -> Iterator[None]:
    """Own the run. Its search has one driver, so that an owner from before is dead, or dying."""
    deadline = time.monotonic() + _HANDOVER_S
    while True:
        owned = runs.own(home, take_over=True)
        try:
            owned.__enter__()
            break
        except RunOwnedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    try:
        yield
    finally:
        owned.__exit__(None, None, None)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _value(home: Run, step: int, metric: str) -> float:
    """The metric as it was recorded at `step`; JSON has null for what is no number."""
    lines = [line for line in read_lines(home.metrics) if line["step"] == step and "event" not in line]
    found = {key: value for line in lines for key, value in line.items()}
    if metric not in found:
        known = ", ".join(sorted(key for key in found if key.startswith("validation/")))
        raise ValueError(f"search.metric: {metric} was never reported: choose among {known}")
    return float("nan") if found[metric] is None else float(found[metric])


@ray.remote(num_cpus=0)
class StopSignal:
    """Rung when the search is to stop. Who waits for it hears that its driver is gone, too."""

    def __init__(self) -> None:
        import asyncio

        self._rung = asyncio.Event()

    async def wait(self) -> None:
        """Returns when it rings."""
        await self._rung.wait()

    async def ring(self) -> None:
        """Now, and for everybody."""
        self._rung.set()


class TrialActor(tune.Trainable):
    """A process that lives trials, one after another: importing what they need takes longer than many a rung."""

    def setup(self, config: dict[str, Any]) -> None:
        """Little: a step's failure is told in full, this one's is not."""
        self._stopping = threading.Event()
        threading.Thread(target=_listen, args=(config["bell"], self._stopping), daemon=True).start()
        self._life = run_trial(TrialSpec(*config["assignment"]), self._stopping)

    def step(self) -> dict[str, Any]:
        """To the next rung."""
        return {"report": tuple(next(self._life, Report(0)))}

    def cleanup(self) -> None:
        """The run is left as one that may go on."""
        self._life.close()  # type: ignore[attr-defined]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """On to another trial."""
        self.cleanup()
        self._life = run_trial(TrialSpec(*new_config["assignment"]), self._stopping)
        return True


def _listen(stop_signal: Any, stopping: threading.Event) -> None:
    with suppress(RayError):
        ray.get(stop_signal.wait.remote())
    stopping.set()
