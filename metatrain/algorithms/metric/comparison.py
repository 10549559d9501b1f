"""Learn an embedding in which tasks are solved without inner steps: the parts that metric-based methods share.

A method of this family yields one adapted learner from the support set's features (`trajectory`) and predicts queries
from theirs (`predict`); `query_gradient` is the `meta_gradient` of its `Algorithm`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.models.dropout import fold
from metatrain.types import Context, MetaGradient, Params, Prediction
from metatrain.validation import require
from tasks.types import Episode, Examples, TaskSpec, Tree

PredictionLoss = Callable[[Any, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(prediction, y) -> (loss, metrics)."""


class Compares(Protocol):
    """A method whose one adapted learner predicts the queries."""

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Any]: ...

    def predict(self, model: Model, params: Params, adapted: Any, x: Tree, context: Context) -> Prediction: ...


class EmbeddedSupport(NamedTuple):
    """The support set's features [n, D] and labels, and its inputs, which an inductive normalisation needs."""

    features: Tensor
    y: Tensor
    support_x: Tree


def embed_support(model: Model, params: Params, support: Examples, context: Context) -> Tensor:
    """Embed the support set [n, D] under its own noise."""
    return model.embed(params, support.x, fold(context.noise, 0))


def embed_queries(model: Model, params: Params, x: Tree, support_x: Tree, context: Context) -> Tensor:
    """Embed queries [n, D] under their own noise; an inductive model normalises them by `support_x`."""
    return model.embed(params, x, fold(context.noise, 1), reference=support_x)


def one_hot(y: Tensor, ways: int, dtype: torch.dtype) -> Tensor:
    """Return [n, ways] with a one at each label."""
    return (y[:, None] == torch.arange(ways, device=y.device)).to(dtype)


def require_classes(name: str, spec: TaskSpec) -> None:
    """Check that tasks have classes, which the method `name` needs."""
    require(spec.ways is not None, f"algorithm.name: {name} needs classes, and these tasks have none: set maml")


def query_gradient(
    self: Compares, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
) -> MetaGradient:
    """Sum over tasks the gradient of the cross-entropy (or squared error) of the queries."""
    return query_gradient_of(task_loss, self, model, params, tasks, context, engine)


def query_gradient_of(
    prediction_loss: PredictionLoss,
    method: Compares,
    model: Model,
    params: Params,
    tasks: Episode,
    context: Context,
    engine: Engine,
) -> MetaGradient:
    """Sum over tasks the gradient of `prediction_loss` of the queries."""

    def loss(params: Params, task: Episode, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        (adapted,) = method.trajectory(model, params, task.support, context)
        return prediction_loss(method.predict(model, params, adapted, task.query.x, context), task.query.y)

    return loss_gradient(loss, params, tasks, context, engine)
