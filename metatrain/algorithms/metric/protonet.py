"""Prototypical networks (Snell, Swersky & Zemel 2017): classify by the nearest class mean of embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from metatrain.algorithms.metric import comparison
from metatrain.models import Model
from metatrain.types import Context, Params, Prediction
from tasks.types import Examples, TaskSpec, Tree


class Prototypes(NamedTuple):
    """One centre per class [N, D], and the support inputs whose statistics an inductive normalisation needs."""

    centres: Tensor
    support_x: Tensor


@dataclass(frozen=True)
class ProtoNet:
    """Predict p(y = n | x) ∝ exp(−‖f(x) − c_n‖²), c_n the mean of f over the support of class n (eq. 1 and 2)."""

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        comparison.require_classes("protonet", spec)
        return model.initial(head=False)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Prototypes]:
        embedded = comparison.embed_support(model, params, support, context)
        members = comparison.one_hot(support.y, model.spec.ways or 0, embedded.dtype)
        yield Prototypes(members.T @ embedded / members.sum(0)[:, None], support.x)

    def predict(self, model: Model, params: Params, adapted: Prototypes, x: Tree, context: Context) -> Prediction:
        embedded = comparison.embed_queries(model, params, x, adapted.support_x, context)
        return -squared_distances(embedded, adapted.centres)

    meta_gradient = comparison.query_gradient


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖a_i − b_j‖² of [n, D] and [m, D] as [n, m], by |a|² − 2ab + |b|², whose gradient needs no [n, m, D]."""
    return (a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1)[None, :]
