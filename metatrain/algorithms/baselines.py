"""Baselines that learn nothing from other tasks, as algorithms without meta-parameters."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metatrain.algorithms.fills import ConstantFill, NearestFill
from metatrain.algorithms.memory.sequences import score_steps
from metatrain.algorithms.metric.protonet import squared_distances
from metatrain.algorithms.optimization.gradient_descent import Adapted, descend
from metatrain.algorithms.optimization.minibatches import ReptileAdam, descend_on_batches
from metatrain.algorithms.reinforcement.bandits import UCB1, ThompsonSampling
from metatrain.algorithms.reinforcement.baselines import OptimalPolicy, RandomPolicy
from metatrain.metrics import measure
from metatrain.models import Model
from metatrain.types import Context, Gaussian, InnerLoop, MetaGradient, Params, Prediction
from tasks.described import EXAMPLE
from tasks.types import Examples, OracleEpisode, OracleSequence, TaskSpec, Tree, is_shape


def _unread(spec: TaskSpec) -> str | None:
    """Return why a baseline of plain networks and distances cannot read tasks of `spec`; None if it can."""
    if spec.masked:
        return "it reads support sets of one size, and these differ"
    if spec.ordered:
        return "it adapts to a support set, and these tasks are sequences"
    return "it reads no missing values" if spec.missing else None


def _has_examples(spec: TaskSpec) -> bool:
    """Return whether support examples are descriptions with examples like queries beside them."""
    return isinstance(spec.support, dict) and spec.support.get(EXAMPLE) == spec.x


def _of_examples(self: object, spec: TaskSpec) -> bool:
    """Return whether tasks are made of examples, not environments."""
    return spec.kind != "environment"


@dataclass(frozen=True)
class NearestNeighbour:
    """Predict the class or value of the support example nearest in raw inputs (squared Euclidean distance).

    Descriptions beside examples are not read.
    """

    offered = _of_examples

    def refusal(self, spec: TaskSpec) -> str | None:
        if spec.support is not None and not _has_examples(spec):
            return "it compares queries with support examples, and these are of another kind"
        if (reason := _unread(spec)) is not None:
            return reason
        return None if is_shape(spec.x) else "it compares inputs that are arrays of one shape, and these are not"

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        return {}

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Examples]:
        yield support

    def predict(self, model: Model, params: Params, adapted: Examples, x: Tree, context: Context) -> Prediction:
        shown = adapted.x[EXAMPLE] if isinstance(adapted.x, dict) else adapted.x
        distances = squared_distances(x.flatten(1), shown.flatten(1))
        if model.spec.ways is None:
            return adapted.y[distances.argmin(1)]
        of_class = adapted.y[None, :] == torch.arange(model.spec.ways or 0, device=x.device)[:, None]
        far = torch.where(of_class[None], distances[:, None, :], torch.inf)
        return -far.amin(2)

    def meta_gradient(self, *_: object) -> MetaGradient:
        raise ValueError("algorithm.name: nearest_neighbour has nothing to learn: evaluate it, or train another")


@dataclass(frozen=True)
class FromScratch:
    """Train the run's network from random weights on the support set only, by full-batch Adam; never given weights."""

    lr: float = 1e-3
    steps: int = 20

    offered = _of_examples

    def refusal(self, spec: TaskSpec) -> str | None:
        if (reason := _unread(spec)) is not None:
            return reason
        return None if spec.support is None else "it trains on support examples, and queries have another shape"

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        return model.initial()

    def inner(self, model: Model) -> InnerLoop:
        return descend_on_batches(model, ReptileAdam(), self.lr, self.steps, inner_batch=sys.maxsize)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Adapted]:
        like = support.x if isinstance(support.x, Tensor) else support.y
        weights = {name: value.to(like.device) for name, value in model.initial().items()}
        return descend(self, model, weights, support, context)

    def predict(self, model: Model, params: Params, adapted: Adapted, x: Tree, context: Context) -> Prediction:
        return model.predict(adapted.fast.weights, x, context.noise, reference=adapted.support_x)

    def meta_gradient(self, *_: object) -> MetaGradient:
        raise ValueError("algorithm.name: from_scratch learns nothing from other tasks: evaluate it, or train another")


@dataclass(frozen=True)
class Oracle:
    """Predict by the exact posterior of the tasks' own distribution, as no learner can: no prediction is better."""

    transductive = False

    def offered(self, spec: TaskSpec) -> bool:
        return spec.posterior

    def refusal(self, spec: TaskSpec) -> str | None:
        return None if spec.posterior else "the exact posterior of these tasks is not known"

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        return {}

    def score(
        self, model: Model, params: Params, task: OracleEpisode | OracleSequence, context: Context
    ) -> dict[str, Tensor]:
        if isinstance(task, OracleSequence):
            return score_steps(model.spec, task.posterior, task)
        return {"inner_step": torch.tensor([0])} | measure([Gaussian(*task.posterior)], task.query.y)

    def meta_gradient(self, *_: object) -> MetaGradient:
        raise ValueError("algorithm.name: oracle has nothing to learn: train another")


BASELINES: dict[str, Any] = {
    "nearest_neighbour": NearestNeighbour(),
    "from_scratch": FromScratch(),
    "constant_fill": ConstantFill(),
    "nearest_fill": NearestFill(),
    "oracle": Oracle(),
    "random_policy": RandomPolicy(),
    "thompson_sampling": ThompsonSampling(),
    "ucb1": UCB1(),
    "optimal_policy": OptimalPolicy(),
}
"""The baselines by name. "untrained" is the run's own algorithm at its initial parameters instead: random ones, or
those that `model.weights` or `initialize` gave it."""
