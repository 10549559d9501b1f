"""Score learners on held-out tasks: the mean over tasks, its 95 % intervals, and the score after each inner step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metatrain.algorithms.base import Algorithm
from metatrain.engine import Engine
from metatrain.evaluation.intervals import ci95_over_classes, mean_and_ci95
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.types import Context, Executor, Params, Scores, Shard, ShardRequest
from tasks.types import Episode, Progress, Split, Tree, no_progress

INNER_STEP = "inner_step"
"""The key, among a task's scores, of the number of inner steps before each score."""


@dataclass(frozen=True)
class InnerStepCurve:
    """The score after each number of inner steps: mean over tasks and half the width of its 95 % interval."""

    steps: list[int]
    mean: list[float]
    ci95: list[float]


@dataclass(frozen=True)
class Evaluation:
    """The mean over `tasks` held-out tasks after the last inner step; `curve` holds the earlier steps.

    ci95: half the interval over tasks: where the mean of other tasks of the same classes would lie.
    ci95_classes: half the interval over classes: where that of tasks of other classes would lie. None for tasks
    without classes, of a source that does not tell them, or of too few `classes`.
    """

    learner: str
    split: Split
    score: Literal["accuracy", "mse"]
    value: float
    ci95: float
    loss: float
    tasks: int
    transductive: bool
    curve: InnerStepCurve
    ci95_classes: float | None = None
    classes: int | None = None
    test_classes: int | None = None
    test_classes_trained_on: int | None = None
    """Classes that tasks are drawn from, and those of them that the run was trained on; None where that is unknown."""

    @property
    def kind(self) -> Literal["transductive", "inductive"]:
        """Return whether the queries of a task were predicted together or each by itself."""
        return "transductive" if self.transductive else "inductive"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the score under its own name: {"score": "accuracy", "accuracy": 0.98, …}.

        An interval of one task is None.
        """
        plain = asdict(self)
        for place in (plain, plain["curve"]) if self.tasks < 2 else ():
            place["ci95"] = None if place is plain else [None] * len(self.curve.steps)
        plain[plain["score"]] = plain.pop("value")
        return plain


def make_shards(first: int, count: int, shard_size: int) -> list[Shard]:
    """Split `count` task indices from `first` on into shards of `shard_size`, the last one smaller if need be."""
    starts = range(first, first + count, shard_size)
    return [
        Shard(number, tuple(range(start, min(start + shard_size, first + count))))
        for number, start in enumerate(starts)
    ]


def score_tasks(
    algorithm: Algorithm, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
) -> Scores:
    """Score every task's queries after the inner steps of `select_scored_steps`: name -> [tasks, points]."""

    def one(params: Params, task: Episode, context: Context) -> dict[str, Tensor]:
        points = []
        for t, adapted in select_scored_steps(algorithm.trajectory(model, params, task.support, context)):
            prediction = algorithm.predict(model, params, adapted, task.query.x, context)
            points.append({INNER_STEP: torch.tensor(t)} | task_loss(prediction, task.query.y)[1])
        return {name: torch.stack([point[name] for point in points]) for name in points[0]}

    with torch.no_grad():
        return Scores(engine.map(one, params, tasks, context))


def select_scored_steps(trajectory: Iterator[Tree]) -> Iterator[tuple[int, Tree]]:
    """Yield the states after 0 to 5, 10, 20, 50, 100, … inner steps and the last: predicting costs more than a step."""
    t, state = -1, None
    for t, state in enumerate(trajectory):
        if is_scored_step(t):
            yield t, state
    if not is_scored_step(t):
        yield t, state


def is_scored_step(t: int) -> bool:
    """Return whether t is at most 5, or 1, 2 or 5 times a power of ten."""
    return t <= 5 or str(t).rstrip("0") in ("1", "2", "5")


def gather_scores(
    executor: Executor,
    request: ShardRequest,
    params: Params,
    tasks: int,
    shard_size: int,
    progress: Progress = no_progress,
) -> dict[str, Tensor]:
    """Score tasks 0, 1, … of a split on all workers: name -> [tasks, points] in task order, float64.

    "inner_step" holds the inner steps before each point, the last of which is the result. progress: called with the
    tasks done and all tasks, before the first shard and after each; what it raises ends the scoring.
    """
    gathered, done = [], 0
    progress(0, tasks)
    for part in executor.map(request, params, make_shards(0, tasks, shard_size)):
        gathered.append(part)
        done += len(part.values[INNER_STEP])
        progress(done, tasks)
    return {name: torch.cat([part.values[name].double() for part in gathered]) for name in gathered[0].values}


def evaluate(
    executor: Executor,
    request: ShardRequest,
    params: Params,
    tasks: int,
    shard_size: int,
    transductive: bool,
    classes: np.ndarray[Any, Any] | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Score tasks 0, 1, … of a split on all workers, and average in task order.

    classes: the numbers of each task's classes [tasks, N], for the interval over them. progress: as in `gather_scores`.
    """
    scores = gather_scores(executor, request, params, tasks, shard_size, progress)
    name: Literal["accuracy", "mse"] = "accuracy" if "accuracy" in scores else "mse"
    mean, ci95 = mean_and_ci95(scores[name])
    over_classes = (None, None) if classes is None else ci95_over_classes(scores[name][:, -1], classes)
    steps = [int(step) for step in scores[INNER_STEP][0]]
    return Evaluation(
        learner=request.learner,
        split=request.split,
        score=name,
        value=float(mean[-1]),
        ci95=float(ci95[-1]),
        loss=float(scores["loss"][:, -1].mean()),
        tasks=len(scores[name]),
        transductive=transductive,
        curve=InnerStepCurve(steps, mean.tolist(), ci95.tolist()),
        ci95_classes=over_classes[0],
        classes=over_classes[1],
    )


def format_results(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Yield the results for people, one line per learner."""
    width = max((len(evaluation.learner) for evaluation in evaluations), default=0)
    for e in evaluations:
        of = "" if e.classes is None else f" of {e.classes} classes"
        yield f"{e.learner:<{width}}  {e.split} {e.score} {_format_score(e)}  ({e.tasks} tasks{of}, {e.kind})"


def _format_score(e: Evaluation) -> str:
    value = f"{100 * e.value:6.2f}" if e.score == "accuracy" else f"{e.value:.4f}"
    if e.classes is None:
        return f"{value} ± {_format_half(e.ci95, e.score)}"
    over_classes = math.nan if e.ci95_classes is None else e.ci95_classes
    halves = f"± {_format_half(e.ci95, e.score)} over tasks, ± {_format_half(over_classes, e.score)} over classes"
    return f"{value} {halves}"


def _format_half(half: float, score: str) -> str:
    if math.isnan(half):
        return "n/a"
    return f"{100 * half:.2f} %" if score == "accuracy" else f"{half:.4f}"
