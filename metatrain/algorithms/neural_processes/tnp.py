"""Transformer neural processes, with independent predictions (TNP-D; Nguyen & Grover 2022)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor

from metatrain.algorithms.attention import last_attention
from metatrain.algorithms.metric.comparison import query_gradient
from metatrain.algorithms.neural_processes import networks
from metatrain.models import Model, Part
from metatrain.models.transformer import SetTransformer
from metatrain.types import Context, Gaussian, Params
from metatrain.validation import require_divisor, require_positive
from tasks.types import Examples, TaskSpec, Tree, members


class SupportTokens(NamedTuple):
    """The tokens that queries attend to in each layer [layers, n + 1, width], and which examples are members [n]."""

    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TNP:
    """Predict N(μ, σ²) of each query by a Transformer whose queries attend to the support set and to nothing else.

    Tokens are e(f(x_i), y_i) of support examples and e(f(x), 0) of queries. Support tokens attend to each other, and a
    query changes no other prediction (TNP-D, section 3.3). A learned token stands in every support set, so that an
    empty one can be read. The weights are parameters "transformer.…".
    """

    width: int = 64
    layers: int = 6
    heads: int = 4
    hidden: int = 128
    embedding_depth: int = 4
    min_std: float = 0.01

    reads_masks = True

    def __post_init__(self) -> None:
        require_positive("algorithm", width=self.width, layers=self.layers, heads=self.heads, hidden=self.hidden)
        require_positive("algorithm", embedding_depth=self.embedding_depth, min_std=self.min_std)
        require_divisor(self.width, self.heads)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        networks.require_densities("tnp", model, spec)
        return model.initial(head=False) | self._network(model).initial(seed)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[SupportTokens]:
        features = networks.embed(model, params, support.x, context, networks.SUPPORT)
        mask = members(support)
        tokens = self._network(model)(params, networks.pairs_of(features, support.y), mask, ())
        yield SupportTokens(tokens, mask)

    def predict(self, model: Model, params: Params, adapted: SupportTokens, x: Tree, context: Context) -> Gaussian:
        features = networks.embed(model, params, x, context, networks.QUERY)
        unknown = networks.pairs_of(features, features.new_zeros(len(features), model.spec.y[0]))
        outputs = self._network(model)(params, unknown, adapted.mask, adapted.tokens)
        return networks.gaussian_of(outputs, self.min_std)

    attention = last_attention
    meta_gradient = query_gradient

    def _network(self, model: Model) -> Part:
        inputs, outputs = model.num_features + model.spec.y[0], 2 * model.spec.y[0]
        sizes = (inputs, self.width, outputs, self.layers, self.heads, self.hidden, self.embedding_depth)
        return Part("transformer.", partial(SetTransformer, *sizes))
