"""Matching networks (Vinyals et al. 2016): classify by attention over the support set, and embed it as a whole."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metatrain.algorithms.metric import comparison
from metatrain.algorithms.metric.comparison import EmbeddedSupport
from metatrain.models import Model, Part
from metatrain.models.layers import LSTMCell
from metatrain.types import Context, Params, Prediction
from metatrain.validation import require, require_positive
from tasks.types import Examples, TaskSpec, Tree


@dataclass(frozen=True)
class Matching:
    """Predict p(y = n | x) = Σ_{i: y_i = n} a(x, x_i), a = softmax_i(scale · cos(f(x), g(x_i))) (eq. 1 and 2).

    `scale` is 1 in the paper. With `full_context` g and f depend on the whole support set (appendix A): an LSTM reads
    it in both directions, in the order of the episode, and another reads a query `processing_steps` times with
    attention over g. Without, both are the network. The two are parameters "context.…".
    """

    scale: float = 1.0
    full_context: bool = False
    processing_steps: int = 5

    def __post_init__(self) -> None:
        require_positive("algorithm", scale=self.scale, processing_steps=self.processing_steps)
        none = "algorithm.processing_steps: has no effect without full_context: set it, or remove this one"
        require(self.full_context or self.processing_steps == type(self).processing_steps, none)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        comparison.require_classes("matching", spec)
        weights = model.initial(head=False)
        return weights | self._context(model).initial(seed) if self.full_context else weights

    def trajectory(
        self, model: Model, params: Params, support: Examples, context: Context
    ) -> Iterator[EmbeddedSupport]:
        embedded = comparison.embed_support(model, params, support, context)
        if self.full_context:
            embedded = self._context(model)(params, embedded)
        yield EmbeddedSupport(embedded, support.y, support.x)

    def predict(self, model: Model, params: Params, adapted: EmbeddedSupport, x: Tree, context: Context) -> Prediction:
        near = self._compare(model, params, adapted, x, context)
        own = comparison.one_hot(adapted.y, model.spec.ways or 0, torch.bool)
        # The log of the sum of exp(near) over each class: softmax over classes then gives Σ a.
        return torch.where(own, near[:, :, None], -torch.inf).logsumexp(1)

    def attention(self, model: Model, params: Params, adapted: EmbeddedSupport, x: Tree, context: Context) -> Tensor:
        """Return a(x, x_i) of each query and support example [q, n], for pictures."""
        return self._compare(model, params, adapted, x, context).softmax(1)

    meta_gradient = comparison.query_gradient

    def _compare(self, model: Model, params: Params, adapted: EmbeddedSupport, x: Tree, context: Context) -> Tensor:
        """Return scale · cos(f(x), g(x_i)) [q, n]."""
        embedded = comparison.embed_queries(model, params, x, adapted.support_x, context)
        if self.full_context:
            embedded = self._context(model)(params, adapted.features, embedded)
        return self.scale * F.normalize(embedded) @ F.normalize(adapted.features).T

    def _context(self, model: Model) -> Part:
        return Part("context.", partial(FullContext, math.prod(model.feature_shape), self.processing_steps))


class FullContext(nn.Module):
    """Embed features given the whole support set (appendix A.1 and A.2), by LSTMs of the features' size D."""

    def __init__(self, features: int, processing_steps: int) -> None:
        super().__init__()
        self.forwards, self.backwards = LSTMCell(2 * features, features), LSTMCell(2 * features, features)
        self.attending = LSTMCell(3 * features, features)
        self.processing_steps = processing_steps

    def forward(self, support: Tensor, queries: Tensor | None = None) -> Tensor:
        """Return g of the support features [n, D]; or, with g as `support`, f of `queries` [q, D]."""
        return self._read_set(support) if queries is None else self._attend(queries, support)

    def _read_set(self, x: Tensor) -> Tensor:
        """Compute g(x_i) = h→_i + h←_i + x_i."""
        there, back = _states(self.forwards, x.unbind()), _states(self.backwards, x.unbind()[::-1])
        return x + torch.stack(there) + torch.stack(back[::-1])

    def _attend(self, x: Tensor, g: Tensor) -> Tensor:
        """Compute h_k = ĥ_k + x, (ĥ_k, c_k) = LSTM(x, [h_{k−1}, r_{k−1}], c_{k−1}), r = softmax(h gᵀ) g."""
        h = read = cell = torch.zeros_like(x)
        for _ in range(self.processing_steps):
            h, cell = self.attending(x, torch.cat([h, read], 1), cell)
            h = h + x
            read = (h @ g.T).softmax(1) @ g
        return h


def _states(cell: LSTMCell, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    h = c = torch.zeros_like(inputs[0])
    states = []
    for x in inputs:
        h, c = cell(x, h, c)
        states.append(h)
    return states
