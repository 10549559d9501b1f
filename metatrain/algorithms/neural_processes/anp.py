"""Attentive neural processes (Kim et al. 2019)."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metatrain.algorithms.attention import last_attention
from metatrain.algorithms.neural_processes import latent, networks
from metatrain.models import Model, Part
from metatrain.models.transformer import FeedForward, SetAttention
from metatrain.types import Params
from metatrain.validation import require_divisor, require_positive
from tasks.types import TaskSpec


class Encoded(NamedTuple):
    """The support set's features [n, D] and encodings [n, width], and which rows are members [n]."""

    features: Tensor
    encoded: Tensor
    mask: Tensor


@dataclass(frozen=True)
class ANP:
    """Predict as a neural process whose deterministic path is r(x) = attention of x to the pairs e(f(x_i), y_i).

    Attention has `heads` heads on keys k(f(x_i)) and queries k(f(x)). The pairs attend to each other before
    (`self_attention`). The weights are parameters "encoder.…", "attention.…", "latent_encoder.…" and "decoder.…".
    """

    width: int = 128
    heads: int = 8
    encoder_depth: int = 4
    key_depth: int = 2
    decoder_depth: int = 4
    latents: int = 128
    samples: int = 16
    min_std: float = 0.01
    self_attention: bool = True

    reads_masks = True

    def __post_init__(self) -> None:
        require_positive("algorithm", width=self.width, heads=self.heads, latents=self.latents, samples=self.samples)
        require_positive("algorithm", encoder_depth=self.encoder_depth, decoder_depth=self.decoder_depth)
        require_positive("algorithm", key_depth=self.key_depth, min_std=self.min_std)
        require_divisor(self.width, self.heads)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        networks.require_densities("anp", model, spec)
        own = self._encoder(model).initial(seed) | self._attention(model).initial(seed)
        return model.initial(head=False) | own | latent.initial(self, model, seed)

    def read_path(self, model: Model, params: Params, features: Tensor, y: Tensor, mask: Tensor) -> Encoded:
        return Encoded(features, self._encoder(model)(params, networks.pairs_of(features, y), mask), mask)

    def follow_path(self, model: Model, params: Params, path: Encoded, features: Tensor) -> Tensor:
        found: Tensor = self._attention(model)(params, features, *path)
        return found

    attention = last_attention
    trajectory, predict, meta_gradient = latent.read, latent.predict, latent.meta_gradient

    def _encoder(self, model: Model) -> Part:
        sizes = (model.num_features + model.spec.y[0], self.width, self.encoder_depth, self.heads * self.self_attention)
        return Part("encoder.", partial(PairEncoder, *sizes))

    def _attention(self, model: Model) -> Part:
        return Part("attention.", partial(CrossAttention, model.num_features, self.width, self.heads, self.key_depth))


class PairEncoder(nn.Module):
    """Layers on each pair, then attention between them if `heads` is not 0."""

    def __init__(self, inputs: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.layers = FeedForward(inputs, width, width, depth)
        self.attention = SetAttention(width, width, width, heads) if heads else None

    def forward(self, pairs: Tensor, mask: Tensor) -> Tensor:
        """Return encodings [n, width] of pairs [n, D + d]; those of padding mean nothing."""
        encoded: Tensor = self.layers(pairs)
        if self.attention is None:
            return encoded
        # Without members there is no one to attend to: a row of one keeps the softmax finite, and nobody reads it.
        anyone = mask | ~mask.any()
        attended: Tensor = self.attention(encoded, encoded, encoded, anyone)
        return encoded + attended


class CrossAttention(nn.Module):
    """Attend from queries to the support set, by keys from features; and to a learned value, for an empty set."""

    def __init__(self, inputs: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.keys = FeedForward(inputs, width, width, depth)
        self.attention = SetAttention(width, width, width, heads)
        self.nobody = nn.Parameter(torch.zeros(2, width))

    def forward(self, queries: Tensor, features: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        """Return [q, width]. queries: [q, D]; features: [n, D]; encoded: [n, width]; mask: [n]."""
        keys = torch.cat([self.keys(features), self.nobody[:1]])
        values = torch.cat([encoded, self.nobody[1:]])
        found: Tensor = self.attention(self.keys(queries), keys, values, torch.cat([mask, torch.ones_like(mask[:1])]))
        return found
