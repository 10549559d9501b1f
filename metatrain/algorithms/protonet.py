"""Prototypical networks (Snell, Swersky & Zemel 2017): classify by the nearest class mean of embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.models.dropout import fold
from metatrain.types import Context, MetaGradient, Params, Prediction
from metatrain.validation import require
from tasks.types import Episode, Examples, TaskSpec, Tree


class Prototypes(NamedTuple):
    """One centre per class [N, D], and the support inputs whose statistics an inductive normalisation needs."""

    centres: Tensor
    support_x: Tensor


@dataclass(frozen=True)
class ProtoNet:
    """Predict p(y = n | x) ∝ exp(−‖f(x) − c_n‖²), c_n the mean of f over the support of class n (eq. 1 and 2)."""

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        require(spec.ways is not None, "algorithm.name: protonet needs classes, and these tasks have none: set maml")
        return model.initial(head=False)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Prototypes]:
        embedded = model.embed(params, support.x, fold(context.noise, 0))
        classes = torch.arange(model.spec.ways or 0, device=support.y.device)
        members = (support.y[:, None] == classes).to(embedded.dtype)
        yield Prototypes(members.T @ embedded / members.sum(0)[:, None], support.x)

    def predict(self, model: Model, params: Params, adapted: Prototypes, x: Tree, context: Context) -> Prediction:
        embedded = model.embed(params, x, fold(context.noise, 1), reference=adapted.support_x)
        return -squared_distances(embedded, adapted.centres)

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        def loss(params: Params, task: Episode, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
            (prototypes,) = self.trajectory(model, params, task.support, context)
            return task_loss(self.predict(model, params, prototypes, task.query.x, context), task.query.y)

        return loss_gradient(loss, params, tasks, context, engine)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖a_i − b_j‖² of [n, D] and [m, D] as [n, m], by |a|² − 2ab + |b|², whose gradient needs no [n, m, D]."""
    return (a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1)[None, :]
