"""Judging on held-out tasks: a mean over tasks, its 95 % interval, and the score after each inner step."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metatrain.engine import Engine
from metatrain.losses import task_loss
from metatrain.models import Model
from metatrain.types import Algorithm, Context, Executor, Job, Params, Scores, Shard
from tasks.types import Episode, Split


@dataclass(frozen=True)
class Curve:
    """The score after 0, 1, … inner steps: mean over tasks and half the width of its 95 % interval."""

    steps: list[int]
    mean: list[float]
    ci95: list[float]


@dataclass(frozen=True)
class Evaluation:
    """mean ± 1.96 s/√n over `tasks` held-out tasks, after the last inner step; `curve` tells the ones before."""

    learner: str
    split: Split
    score: Literal["accuracy", "mse"]
    value: float
    ci95: float
    loss: float
    tasks: int
    transductive: bool
    curve: Curve

    def as_dict(self) -> dict[str, Any]:
        """As plain values; the score stands under its own name too: {"score": "accuracy", "accuracy": 0.98}."""
        plain = asdict(self)
        plain[plain["score"]] = plain.pop("value")
        return plain


def shards_of(first: int, count: int, shard_size: int) -> list[Shard]:
    """`count` task indices from `first` on, in shards of a size that depends on nothing else."""
    starts = range(first, first + count, shard_size)
    return [
        Shard(number, tuple(range(start, min(start + shard_size, first + count))))
        for number, start in enumerate(starts)
    ]


def score_tasks(
    algorithm: Algorithm, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
) -> Scores:
    """Query scores of every task after each inner step: name -> [tasks, steps + 1]."""

    def one(params: Params, task: Episode, context: Context) -> dict[str, Tensor]:
        by_step = []
        for adapted in algorithm.trajectory(model, params, task.support, context):
            prediction = algorithm.predict(model, params, adapted, task.query.x, context)
            by_step.append(task_loss(prediction, task.query.y)[1])
        return {name: torch.stack([metrics[name] for metrics in by_step]) for name in by_step[0]}

    with torch.no_grad():
        return Scores(engine.map(one, params, tasks, context))


def evaluate(
    executor: Executor, job: Job, params: Params, tasks: int, shard_size: int, transductive: bool
) -> Evaluation:
    """Scores of tasks 0, 1, … of a split, over all workers, gathered in task order."""
    gathered = list(executor.map(job, params, shards_of(0, tasks, shard_size)))
    scores = {name: torch.cat([part.values[name].double() for part in gathered]) for name in gathered[0].values}
    name: Literal["accuracy", "mse"] = "accuracy" if "accuracy" in scores else "mse"
    mean, ci95 = interval(scores[name])
    steps = list(range(scores[name].shape[1]))
    return Evaluation(
        learner=job.learner,
        split=job.split,
        score=name,
        value=float(mean[-1]),
        ci95=float(ci95[-1]),
        loss=float(scores["loss"][:, -1].mean()),
        tasks=len(scores[name]),
        transductive=transductive,
        curve=Curve(steps, mean.tolist(), ci95.tolist()),
    )


def interval(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over tasks and 1.96 s/√n, s the sample standard deviation. scores: [n, ...], n at least 2."""
    return scores.mean(0), 1.96 * scores.std(0) / len(scores) ** 0.5


def table(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """The results as a person reads them, one line a learner."""
    width = max((len(evaluation.learner) for evaluation in evaluations), default=0)
    for e in evaluations:
        number = (
            f"{100 * e.value:6.2f} ± {100 * e.ci95:.2f} %" if e.score == "accuracy" else f"{e.value:.4f} ± {e.ci95:.4f}"
        )
        kind = "transductive" if e.transductive else "inductive"
        yield f"{e.learner:<{width}}  {e.split} {e.score} {number}  ({e.tasks} tasks, {kind})"
