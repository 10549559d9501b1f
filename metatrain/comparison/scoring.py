"""Score the runs of a comparison on one set of tasks, in both ways of normalising, and time their adaptation."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metatrain.algorithms.base import predicts
from metatrain.comparison.candidates import Candidate
from metatrain.comparison.common_tasks import Prepare
from metatrain.config.dry_run import dry_run, require_same
from metatrain.config.other_algorithm import select_params
from metatrain.engine.precision import matmul_precision
from metatrain.errors import EvaluationStopped
from metatrain.evaluation.evaluate import gather_scores, is_scored_step
from metatrain.models.dropout import NO_NOISE
from metatrain.settings import Config
from metatrain.training.devices import driver_device
from metatrain.training.worker import Worker
from metatrain.types import Context, Executor, Params, Recorder, ShardRequest

Kind = Literal["transductive", "inductive"]
"""Whether the queries of a task are predicted together, each by the others' help, or each by itself."""

BOTH: tuple[Kind, Kind] = ("transductive", "inductive")
TIMED_TASKS = 9
"""Tasks whose adaptation is timed, after one that is not counted."""

Array = np.ndarray[Any, Any]


class Setting(NamedTuple):
    """How a comparison is computed: where, what tells its progress, and what stops it between two shards."""

    open_executor: Callable[[Worker], AbstractContextManager[Executor]]
    prepare: Prepare
    recorder: Recorder
    stop: Callable[[], bool]


class Timing(NamedTuple):
    """Seconds of one task on this machine, medians over `TIMED_TASKS` tasks, one at a time in one thread.

    On a CPU they are processor time, so that other processes hardly change them. seconds: of adapting by `steps` inner
    steps. predicting: of predicting all queries of a task after the last.
    """

    steps: list[int]
    seconds: list[float]
    predicting: float


class Scored(NamedTuple):
    """One run on one set of tasks: name -> [tasks, points], by kind, the kind that it was trained in first.

    classes: the numbers of each task's classes [tasks, N]; None where the source is silent.
    """

    by_kind: dict[Kind, dict[str, Tensor]]
    classes: Array | None
    timing: Timing | None = None
    sources: Sequence[str] = ()
    """The name of each task's source, of a mixture."""


def score_candidate(
    setting: Setting,
    candidate: Candidate,
    config: Config,
    what: str,
    wanted: Sequence[Kind] = BOTH,
    timed: bool = False,
) -> Scored:
    """Score a run with the settings `config`, in each of the `wanted` kinds that it can be, or else as it was trained.

    what: the tasks, for the progress. ValueError: the run cannot be scored on them. EvaluationStopped: `setting.stop`.
    """
    worker = dry_run(config, driver_device(config))
    candidate = candidate._replace(params=params_for(candidate, worker))
    tasks, size = config.evaluation.tasks, config.executor.shard_size
    by_kind: dict[Kind, dict[str, Tensor]] = {}
    with setting.open_executor(worker) as executor:
        for kind, request in _requests(worker, candidate, wanted):
            progress = _watch(setting, f"{candidate.label}, {what}, {kind}")
            by_kind[kind] = gather_scores(executor, request, candidate.params, tasks, size, progress)
    timing = time_adaptation(worker, candidate) if timed and predicts(worker.evaluated) else None
    return Scored(by_kind, worker.task_classes("test", tasks), timing, worker.task_sources("test", tasks))


def params_for(candidate: Candidate, worker: Worker) -> Params:
    """Return the run's parameters that the worker reads: without a classifier of other training classes than it has.

    ValueError: they are those of another network.
    """
    params, _ = select_params(candidate.params, worker, candidate.trained, ())
    require_same(params, worker)
    return params


def _requests(worker: Worker, candidate: Candidate, wanted: Sequence[Kind]) -> Iterator[tuple[Kind, ShardRequest]]:
    """Yield what to score: as the run was trained, then normalised the other way if it can be."""
    own = ShardRequest("score", "test", 0)
    ways = (
        [own] if worker.other_normalization is None else [own, own._replace(normalization=worker.other_normalization)]
    )
    kinds: dict[Kind, ShardRequest] = {}
    for request in ways:
        kinds.setdefault("transductive" if worker.is_transductive(request, candidate.params) else "inductive", request)
    chosen = {kind: request for kind, request in kinds.items() if kind in wanted}
    yield from (chosen or {kind: kinds[kind] for kind in list(kinds)[:1]}).items()


def _watch(setting: Setting, stage: str) -> Callable[[int, int], None]:
    """Return what is called between shards: it shows the progress, and raises EvaluationStopped where it is stopped."""

    def progress(done: int, total: int) -> None:
        setting.recorder.progress(stage, done, total)
        if setting.stop():
            raise EvaluationStopped(f"{stage} after {done} of {total} tasks")

    return progress


def time_adaptation(worker: Worker, candidate: Candidate) -> Timing:
    """Measure how long the run takes to adapt to one test task, eagerly, in this process, and to predict its queries.

    Depends on the machine. Steps are those after which tasks are scored.
    """
    device = worker.device
    params = worker.to_device(candidate.params)
    context = Context(torch.tensor(0, device=device), torch.tensor(NO_NOISE, device=device))
    tasks = [worker.task(ShardRequest("score", "test", 0), index) for index in range(TIMED_TASKS + 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = [
            _time_one(worker, worker.model.for_tasks(spec, params), params, task, context) for task, spec in tasks
        ][1:]
    finally:
        torch.set_num_threads(threads)
    points, predicting = zip(*measured, strict=True)
    steps = [step for step, _ in points[0]]
    seconds = [median(one[number][1] for one in points) for number in range(len(steps))]
    return Timing(steps, seconds, median(predicting))


def _time_one(
    worker: Worker, model: Any, params: Any, task: Any, context: Context
) -> tuple[list[tuple[int, float]], float]:
    """Return (inner steps, seconds since the start) at each point that is scored, and the seconds of predicting."""
    algorithm, device = worker.evaluated, worker.device

    def now() -> float:
        if device.type == "cpu":
            return time.thread_time()  # what others compute meanwhile does not count
        torch.cuda.synchronize(device)
        return time.perf_counter()

    with torch.no_grad(), matmul_precision(worker.engine.precision, device):
        began, points, t, adapted = now(), [], -1, None
        for t, state in enumerate(algorithm.trajectory(model, params, task.support, context)):
            adapted = state
            if is_scored_step(t):
                points.append((t, now() - began))
        adapted_at = now()
        if not is_scored_step(t):
            points.append((t, adapted_at - began))
        algorithm.predict(model, params, adapted, task.query.x, context)
        return points, now() - adapted_at
