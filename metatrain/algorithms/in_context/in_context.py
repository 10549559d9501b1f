"""In-context learning: a Transformer reads labelled examples and predicts a further one, without a gradient."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.algorithms.attention import begin_alike, last_attention
from metatrain.algorithms.labels import require_labels, seen_classes, without_unseen
from metatrain.algorithms.metric.comparison import embed_queries, embed_support, one_hot, query_gradient
from metatrain.models import Model, Part
from metatrain.models.transformer import SetTransformer
from metatrain.types import Context, Histogram, Params, Prediction
from metatrain.validation import require, require_divisor, require_positive
from tasks.types import Examples, TaskSpec, Tree, members

PREFIX = "transformer."


class ReadExamples(NamedTuple):
    """A support set that was read."""

    tokens: Tensor
    """What queries attend to in each layer [layers, n + 1, width]."""
    mask: Tensor
    """Which support examples are members [n]."""
    support_x: Tree
    """The inputs, which an inductive normalisation needs."""
    seen: Tensor
    """Which classes are in it [labels]; empty for values."""


@dataclass(frozen=True)
class InContext:
    """Predict each query by a Transformer whose queries attend to the support set and to nothing else.

    Tokens are e(f(x_i), l_i) of support examples and e(f(x), 0) of queries, with f the run's network, e a linear layer,
    and l the label: one of as many numbers as tasks have classes, which each task gives its classes in random order;
    or the value. Classes come out as logits; those that the support set does not show have no probability. Values come
    out as a `Histogram` of `bins` bins, the inner ones over `span` (the bar distribution of Müller et al. 2022). The
    weights are parameters "transformer.…".
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 256
    bins: int = 100
    span: tuple[float, float] = (-4.0, 4.0)

    reads_masks = True

    def __post_init__(self) -> None:
        require_positive("algorithm", width=self.width, layers=self.layers, heads=self.heads, hidden=self.hidden)
        require_divisor(self.width, self.heads)
        require(self.bins >= 3, f"algorithm.bins: {self.bins} bins are two ends and no middle: set 3 or more")
        low, high = self.span
        require(low < high, f"algorithm.span: {low:g} to {high:g} is no range: set two numbers, the smaller first")

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        many = f"algorithm.name: in_context predicts classes or one value, and targets have shape {spec.y}: set tnp"
        require(spec.ways is not None or spec.y == (1,), many)
        alone = "model: support sets of many sizes are read one by one: set model.normalization=group"
        require(not spec.masked or model.normalization == "none", alone)
        labels = spec.ways or 1
        return model.initial(head=False) | begin_alike(self._network(model, labels).initial(seed))

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[ReadExamples]:
        features, classes = embed_support(model, params, support, context), model.spec.ways is not None
        labels, mask = self._labels(model, params), members(support)
        given = one_hot(support.y, labels, features.dtype) if classes else support.y
        tokens = self._network(model, labels)(params, torch.cat([features, given], -1), mask, ())
        seen = seen_classes(support, labels) if classes else mask[:0]
        yield ReadExamples(tokens, mask, support.x, seen)

    def predict(self, model: Model, params: Params, adapted: ReadExamples, x: Tree, context: Context) -> Prediction:
        features, labels = embed_queries(model, params, x, adapted.support_x, context), self._labels(model, params)
        asked = torch.cat([features, features.new_zeros(len(features), labels)], -1)
        outputs = self._network(model, labels)(params, asked, adapted.mask, adapted.tokens)
        if model.spec.ways is not None:
            return without_unseen(outputs, adapted.seen, model.spec.ways)
        return Histogram(outputs, outputs.new_tensor(self.span).expand(len(outputs), 2))

    attention = last_attention
    meta_gradient = query_gradient

    def _labels(self, model: Model, params: Params) -> int:
        """Return how many labels the network was made for. ValueError: tasks have more classes."""
        labels = params[f"{PREFIX}embedding.0.weight"].shape[1] - model.num_features
        require_labels(model, labels)
        return labels

    def _network(self, model: Model, labels: int) -> Part:
        outputs = self.bins if model.spec.ways is None else labels
        sizes = (model.num_features + labels, self.width, outputs, self.layers, self.heads, self.hidden, 1)
        return Part(PREFIX, partial(SetTransformer, *sizes))
