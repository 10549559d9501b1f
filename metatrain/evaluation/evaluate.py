"""Score learners on held-out tasks: the mean over tasks, its 95 % intervals, and the score after each inner step."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metatrain.algorithms.base import Algorithm, predictor
from metatrain.engine import Engine
from metatrain.evaluation.by_source import SourceEstimate, estimate_by_source
from metatrain.evaluation.intervals import estimate, over_classes
from metatrain.metrics import GENERALISED, METRICS, CalibrationCurve, Metric, calibration_of, measure, primary_of
from metatrain.models import Model
from metatrain.types import Context, Executor, Gaussian, Params, Scores, Shard, ShardRequest
from metatrain.validation import require
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
class Estimate:
    """A metric over all tasks, and half the width of its 95 % interval over tasks."""

    value: float
    ci95: float


@dataclass(frozen=True)
class Evaluation:
    """The score over `tasks` held-out tasks after the last inner step; `curve` holds the earlier steps.

    score: the name of the primary metric, which says which of two learners is better; value, ci95 and the curve are of
    it. metrics: every metric by name, the primary one included.

    ci95: half the interval over tasks: where the mean of other tasks of the same classes would lie.
    ci95_classes: half the interval over classes: where that of tasks of other classes would lie. None for tasks
    without classes, of a source that does not tell them, or of too few `classes`.
    """

    learner: str
    split: Split
    score: str
    value: float
    ci95: float
    loss: float | None
    tasks: int
    transductive: bool
    curve: InnerStepCurve
    ci95_classes: float | None = None
    classes: int | None = None
    test_classes: int | None = None
    test_classes_trained_on: int | None = None
    """Classes that tasks are drawn from, and those of them that the run was trained on; None where that is unknown."""
    metrics: dict[str, Estimate] = field(default_factory=dict)
    calibration: CalibrationCurve | None = None
    """Of the queries of all tasks together; None for predictions without probabilities."""
    by_source: dict[str, SourceEstimate] = field(default_factory=dict)
    """The score over the tasks of each source of a mixture."""

    @property
    def kind(self) -> Literal["transductive", "inductive"]:
        """Return whether the queries of a task were predicted together or each by itself."""
        return "transductive" if self.transductive else "inductive"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the score under its own name too: {"score": "accuracy", "accuracy": 0.98, …}.

        An interval of one task is None.
        """
        plain = asdict(self)
        for place in (plain, plain["curve"], *plain["metrics"].values()) if self.tasks < 2 else ():
            place["ci95"] = [None] * len(self.curve.steps) if place is plain["curve"] else None
        for source in plain["by_source"].values():
            source["ci95"] = None if source["tasks"] < 2 else source["ci95"]
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
    """Score every task as the algorithm does itself, or else by `score_trajectory`: name -> [tasks, points, ...].

    ValueError: what the algorithm's own `score` returns are no scores.
    """
    one = getattr(algorithm, "score", None) or partial(score_trajectory, algorithm)
    tasks = getattr(algorithm, "trim", _whole)(tasks)
    with torch.no_grad():
        found = engine.for_acting(model.spec).map(partial(one, model), params, tasks, context)
    check_scores(found, type(algorithm).__name__)
    return Scores(found)


def in_order(found: Sequence[Scores], places: Sequence[Sequence[int]]) -> Scores:
    """Return the scores of all tasks in the order of the shard, of batches whose tasks have these places in it."""
    if len(found) == 1:
        return found[0]
    order = torch.tensor([place for batch in places for place in batch]).argsort()
    return Scores({name: torch.cat([one.values[name] for one in found])[order] for name in found[0].values})


def _whole(tasks: Episode) -> Episode:
    return tasks


def score_trajectory(
    algorithm: Algorithm, model: Model, params: Params, task: Episode, context: Context
) -> dict[str, Tensor]:
    """Score one task: predict its queries after the inner steps of `select_scored_steps`. name -> [points, ...].

    What an algorithm does that has no `score` of its own.
    """
    predict = predictor(algorithm, model, params, task.query.x, context)
    steps, predictions = [], []
    for t, adapted in select_scored_steps(algorithm.trajectory(model, params, task.support, context)):
        steps.append(t)
        predictions.append(predict(adapted))
    posterior = getattr(task, "posterior", None)
    exact = None if posterior is None else Gaussian(*posterior)
    return {INNER_STEP: torch.tensor(steps)} | measure(predictions, task.query.y, exact, model.spec.seen)


def check_scores(found: Mapping[str, Tensor], who: str) -> None:
    """Check that scores hold metrics of the registry at known points, a primary one among them. ValueError: not so."""
    unknown = sorted(found.keys() - METRICS.keys() - {INNER_STEP})
    require(not unknown, f"score of {who}: no metric {', '.join(unknown)}: use names of metatrain.metrics.METRICS")
    require(INNER_STEP in found, f"score of {who}: returns no {INNER_STEP}: return the inner steps before each point")
    primary_of(found)
    points = found[INNER_STEP].shape
    for name in found.keys() - {INNER_STEP}:
        fits = found[name].shape[:2] == points and (METRICS[name].of_sums is not None or found[name].dim() == 2)
        shape = tuple(found[name].shape[1:])
        require(fits, f"score of {who}: {name} has shape {shape}: return [points], as many as of {INNER_STEP}")


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

    "inner_step" holds the inner steps before each point, the last of which is the result. Of a metric that is pooled
    over tasks (`Metric.of_sums`) the values are the sums of each task, [tasks, points, *shape]. progress: called with
    the tasks done and all tasks, before the first shard and after each; what it raises ends the scoring.
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
    sources: Sequence[str] = (),
) -> Evaluation:
    """Score tasks 0, 1, … of a split on all workers, and average in task order.

    classes: the numbers of each task's classes [tasks, N], for the interval over them. progress: as in `gather_scores`.
    sources: the name of each task's source [tasks], of a mixture.
    """
    scores = gather_scores(executor, request, params, tasks, shard_size, progress)
    primary = primary_of(scores)
    value, ci95 = estimate(primary, scores[primary.name])
    of_classes = None if classes is None else over_classes(scores[primary.name][:, -1], classes, sources)
    others = [name for name in scores if name not in (INNER_STEP, primary.name)]
    metrics = {primary.name: Estimate(float(value[-1]), float(ci95[-1]))}
    for name in others:
        metrics[name] = Estimate(*map(float, estimate(METRICS[name], scores[name][:, -1])))
    return Evaluation(
        learner=request.learner,
        split=request.split,
        score=primary.name,
        value=float(value[-1]),
        ci95=float(ci95[-1]),
        loss=metrics["loss"].value if "loss" in metrics else None,
        tasks=len(scores[primary.name]),
        transductive=transductive,
        curve=InnerStepCurve([int(step) for step in scores[INNER_STEP][0]], value.tolist(), ci95.tolist()),
        ci95_classes=None if of_classes is None else of_classes.ci95,
        classes=None if of_classes is None else of_classes.classes,
        metrics=metrics,
        calibration=final_calibration(scores),
        by_source=estimate_by_source(primary, scores[primary.name][:, -1], sources),
    )


def final_calibration(scores: Mapping[str, Tensor]) -> CalibrationCurve | None:
    """Return the calibration curve after the last inner step, of the queries of all tasks together.

    scores: as `gather_scores` returns them. None: they predict no probabilities.
    """
    pooled = {name: values for name, values in scores.items() if name in METRICS and METRICS[name].of_sums is not None}
    return calibration_of({name: values[:, -1].sum(0) for name, values in pooled.items()})


def format_results(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Yield the results for people, one line per learner."""
    width = max((len(evaluation.learner) for evaluation in evaluations), default=0)
    for e in evaluations:
        of = "" if e.classes is None else f" of {e.classes} classes"
        yield f"{e.learner:<{width}}  {e.split} {e.score} {_format_score(e)}  ({e.tasks} tasks{of}, {e.kind})"
        for name, one in e.by_source.items():
            value = _format_value(one.value, METRICS[e.score])
            yield f"  {name}: {value} ± {_format_half(one.ci95, METRICS[e.score])}  ({one.tasks} tasks)"
        for name in (metric for metric in GENERALISED if metric in e.metrics):
            found = e.metrics[name]
            half = _format_half(found.ci95, METRICS[name])
            yield f"  {METRICS[name].title}: {_format_value(found.value, METRICS[name])} ± {half}"


def _format_score(e: Evaluation) -> str:
    metric = METRICS[e.score]
    value = _format_value(e.value, metric)
    if e.classes is None:
        return f"{value} ± {_format_half(e.ci95, metric)}"
    over_classes = math.nan if e.ci95_classes is None else e.ci95_classes
    return f"{value} ± {_format_half(e.ci95, metric)} over tasks, ± {_format_half(over_classes, metric)} over classes"


def _format_value(value: float, metric: Metric) -> str:
    return f"{metric.scale * value:6.2f}" if metric.unit == "%" else f"{value:.4f}"


def _format_half(half: float, metric: Metric) -> str:
    if math.isnan(half):
        return "n/a"
    return f"{metric.scale * half:.2f} %" if metric.unit == "%" else f"{half:.4f}"
