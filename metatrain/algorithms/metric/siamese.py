"""Siamese networks (Koch, Zemel & Salakhutdinov 2015): tell whether two examples are of one class."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from metatrain.algorithms.metric import comparison
from metatrain.algorithms.metric.comparison import EmbeddedSupport
from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.types import Context, MetaGradient, Params, Prediction
from metatrain.validation import require
from tasks.types import Episode, Examples, TaskSpec, Tree

WEIGHT, BIAS = "siamese.weight", "siamese.bias"


@dataclass(frozen=True)
class Siamese:
    """Learn p(same class | x, x') = σ(Σ_j w_j |f(x)_j − f(x')_j| + b) (section 3.1) by binary cross-entropy.

    The pairs are all those of a query and a support example, and of two support examples. `balanced`: the two kinds of
    pairs weigh the same, as in the paper, where as many are drawn of each; else every pair does. w and b are parameters
    "siamese.…"; `outer.groups.siamese` sets their optimiser.

    Predict the class of the support example most likely to be of the same class (`by: max`, the paper's), or the class
    of the highest mean log-odds (`by: mean`).
    """

    balanced: bool = True
    by: Literal["max", "mean"] = "max"

    def __post_init__(self) -> None:
        require(self.by in ("max", "mean"), f"algorithm.by: {self.by} is not known: set max or mean")

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        comparison.require_classes("siamese", spec)
        weights = model.initial(head=False)
        features = math.prod(model.feature_shape)
        # Equal features give log-odds of 2, and features that all differ by 1 give −2.
        return weights | {WEIGHT: torch.full((features,), -4 / features), BIAS: torch.tensor(2.0)}

    def trajectory(
        self, model: Model, params: Params, support: Examples, context: Context
    ) -> Iterator[EmbeddedSupport]:
        yield EmbeddedSupport(comparison.embed_support(model, params, support, context), support.y, support.x)

    def predict(self, model: Model, params: Params, adapted: EmbeddedSupport, x: Tree, context: Context) -> Prediction:
        embedded = comparison.embed_queries(model, params, x, adapted.support_x, context)
        return self._by_class(model, log_odds(params, embedded, adapted.features), adapted.y)

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        def loss(params: Params, task: Episode, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
            (support,) = self.trajectory(model, params, task.support, context)
            embedded = comparison.embed_queries(model, params, task.query.x, support.support_x, context)
            between = log_odds(params, embedded, support.features)
            within = log_odds(params, support.features, support.features)
            metrics = task_loss(self._by_class(model, between, support.y), task.query.y)[1]
            of_pairs = self._pair_loss(between, within, task.query.y, support.y)
            return of_pairs, metrics | {"loss": of_pairs}

        return loss_gradient(loss, params, tasks, context, engine)

    def _by_class(self, model: Model, odds: Tensor, y: Tensor) -> Prediction:
        """Reduce log-odds [q, n] of (query, support) pairs to one per class [q, N]."""
        own = comparison.one_hot(y, model.spec.ways or 0, odds.dtype)
        if self.by == "mean":
            return odds @ own / own.sum(0)
        return torch.where(own > 0, odds[:, :, None], -torch.inf).amax(1)

    def _pair_loss(self, between: Tensor, within: Tensor, query_y: Tensor, y: Tensor) -> Tensor:
        """Return the weighted mean of the binary cross-entropy of pairs: [q, n] of two sets, [n, n] of one."""
        odds = torch.cat([between, within])
        same = torch.cat([query_y, y])[:, None] == y
        once = torch.ones_like(within).tril(-1)  # each pair once, and none of an example with itself
        counts = torch.cat([torch.ones_like(between), once])
        if self.balanced:
            weights = counts * torch.where(same, 0.5 / (counts * same).sum(), 0.5 / (counts * ~same).sum())
        else:
            weights = counts / counts.sum()
        return -(weights * F.logsigmoid(torch.where(same, odds, -odds))).sum()


def log_odds(params: Params, a: Tensor, b: Tensor) -> Tensor:
    """Return Σ_j w_j |a_ij − b_kj| + bias of [n, D] and [m, D] as [n, m]."""
    return (a[:, None, :] - b[None, :, :]).abs() @ params[WEIGHT] + params[BIAS]
