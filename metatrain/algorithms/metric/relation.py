"""Relation networks (Sung et al. 2018): learn the comparison of a query with a class as well as the embedding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metatrain.algorithms.metric import comparison
from metatrain.engine import Engine
from metatrain.metrics import task_loss
from metatrain.models import Model, Part
from metatrain.types import Context, MetaGradient, Params, Prediction
from metatrain.validation import require, require_positive
from tasks.types import Episode, Examples, Shape, TaskSpec, Tree


class ClassMaps(NamedTuple):
    """The sum of each class's feature maps [N, *shape], and the support inputs for an inductive normalisation."""

    maps: Tensor
    support_x: Tensor


@dataclass(frozen=True)
class Relation:
    """Predict σ(g(Σ_{i: y_i = n} f(x_i), f(x))), g the relation module (eq. 1 and section 3.3), one score per class.

    f gives maps [C, H, W], not vectors, where the network ends in `nn.Flatten`. The module's weights are parameters
    "relation.…"; `outer.groups.relation` sets their optimiser. `width` is that of its two blocks, `hidden` that of the
    layer between them and the score. `loss`: "mse" is the paper's, of σ(g) to 1 for the own class and 0 for the others
    (eq. 2); "cross_entropy" takes g as logits. Predictions are g, without σ, which changes no order.
    """

    width: int = 64
    hidden: int = 8
    loss: Literal["mse", "cross_entropy"] = "mse"

    def __post_init__(self) -> None:
        require_positive("algorithm", width=self.width, hidden=self.hidden)
        known = self.loss in ("mse", "cross_entropy")
        require(known, f"algorithm.loss: {self.loss} is not known: set mse or cross_entropy")

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        comparison.require_classes("relation", spec)
        return model.initial(head=False) | self._module(model).initial(seed)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[ClassMaps]:
        embedded = comparison.embed_support(model, params, support, context)
        sums = comparison.one_hot(support.y, model.spec.ways or 0, embedded.dtype).T @ embedded
        yield ClassMaps(sums.view(-1, *model.feature_shape), support.x)

    def predict(self, model: Model, params: Params, adapted: ClassMaps, x: Tree, context: Context) -> Prediction:
        embedded = comparison.embed_queries(model, params, x, adapted.support_x, context)
        scores: Tensor = self._module(model)(params, adapted.maps, embedded.view(-1, *model.feature_shape))
        return scores

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        loss = task_loss if self.loss == "cross_entropy" else squared_error_of_scores
        return comparison.query_gradient_of(loss, self, model, params, tasks, context, engine)

    def _module(self, model: Model) -> Part:
        return Part("relation.", partial(RelationModule, model.feature_shape, self.width, self.hidden))


def squared_error_of_scores(prediction: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean of (σ(g) − 1[own class])² over queries and classes (eq. 2), and metrics."""
    error = F.mse_loss(prediction.sigmoid(), comparison.one_hot(y, prediction.shape[1], prediction.dtype))
    return error, task_loss(prediction, y)[1] | {"loss": error}


class RelationModule(nn.Module):
    """Score pairs of a class and a query: two blocks on their features side by side, then two linear layers.

    Blocks are 3×3 convolution, normalisation, ReLU and 2×2 max-pooling while there are 2×2 positions; features that are
    vectors [D] get linear layers for the convolutions. The first convolution of features side by side is the sum of one
    of the class and one of the query, which is computed once for each instead of once for each pair.
    """

    def __init__(self, shape: Shape, width: int, hidden: int) -> None:
        super().__init__()
        self.of_class = _layer(shape, width)
        self.of_query = _layer(shape, width, bias=False)
        self.first_norm, self.second_norm = PairNorm(width), PairNorm(width)
        self.second = _layer((width, *_pooled(shape[1:])), width)
        self.hidden = nn.Linear(width * math.prod(_pooled(_pooled(shape[1:]))), hidden)
        self.score = nn.Linear(hidden, 1)
        for weight in (value for value in self.parameters() if value.dim() > 1):
            nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def forward(self, classes: Tensor, queries: Tensor) -> Tensor:
        """Return g [q, N] of class features [N, *shape] and query features [q, *shape]."""
        pairs = self.of_query(queries)[:, None] + self.of_class(classes)[None]
        pairs = _pool(self.first_norm(pairs.flatten(0, 1)).relu())
        pairs = _pool(self.second_norm(self.second(pairs)).relu())
        scores: Tensor = self.score(self.hidden(pairs.flatten(1)).relu())
        return scores.view(len(queries), len(classes))


class PairNorm(nn.Module):
    """Compute γ (x − μ) / √(σ² + ε) + β, μ and σ² over channels and positions of each pair (layer normalisation).

    The paper's statistics are over all pairs, so that queries would influence each other's scores. x: [n, C, ...].
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=list(range(1, x.dim())), correction=0, keepdim=True)
        shape = [1, -1] + [1] * (x.dim() - 2)
        scaled = (x - mean) * torch.rsqrt(variance + self.eps)
        return scaled * self.weight.view(shape) + self.bias.view(shape)


def _layer(shape: Shape, width: int, bias: bool = True) -> nn.Module:
    if len(shape) == 3:
        return nn.Conv2d(shape[0], width, 3, padding=1, bias=bias)
    return nn.Linear(shape[0], width, bias=bias)


def _pools(positions: Shape) -> bool:
    return len(positions) == 2 and min(positions) >= 2


def _pooled(positions: Shape) -> Shape:
    return tuple(length // 2 for length in positions) if _pools(positions) else positions


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2) if _pools(tuple(x.shape[2:])) else x
