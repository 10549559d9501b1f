"""Layers of Transformers and neural processes: feed-forward networks, and attention to a set with padding."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

_LARGE = 2**20
"""Scores from which attention is fused: below, writing it out is faster, and has second derivatives and a vmap rule."""


class FeedForward(nn.Sequential):
    """`depth` linear layers with ReLU between them: [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, width: int, outputs: int, depth: int) -> None:
        sizes = [inputs, *[width] * (depth - 1), outputs]
        layers: list[nn.Module] = []
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.ReLU()]
        super().__init__(*layers[:-1])


class SetAttention(nn.Module):
    """Attend from queries to a set, in `heads` heads (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, inputs: int, values: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(inputs, width, bias=False), nn.Linear(inputs, width, bias=False)
        self.value, self.output = nn.Linear(values, width, bias=False), nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return [..., q, width]. queries [..., q, inputs], keys [..., n, inputs], values [..., n, values].

        mask: True for members of the set [n], one of them at least.
        """
        return self._joined(self.average(queries, keys, self._split(self.value(values)), mask))

    def average(self, queries: Tensor, keys: Tensor, each: Tensor, mask: Tensor) -> Tensor:
        """Return the average of `each` [..., heads, n, v] of the set by the weights of a query [..., heads, q, v]."""
        q, k = self._split(self.query(queries)), self._split(self.key(keys))
        size, width = each.shape[-1], q.shape[-1]
        # In parts as wide as keys: fused attention takes no others, and rounding does not depend on the place of a row.
        parts = torch.split(F.pad(each, (0, -size % width)), width, -1)
        if math.prod(q.shape[:-1]) * k.shape[-2] > _LARGE:
            seen = mask.expand(q.shape[-2], -1)
            found = [F.scaled_dot_product_attention(q, k, part, attn_mask=seen) for part in parts]
        else:
            weights = _weights(q, k, mask)
            found = [weights @ part for part in parts]
        return torch.cat(found, -1)[..., :size]

    def with_average(self, queries: Tensor, keys: Tensor, each: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` does where the keys are the values, and the average of `each` [n, v] by head."""
        values = self._split(self.value(keys))
        found = self.average(queries, keys, torch.cat([values, each.expand(*values.shape[:-2], -1, -1)], -1), mask)
        own, average = torch.split(found, [values.shape[-1], each.shape[-1]], -1)
        return self._joined(own), average

    def weights(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Return what `forward` weighs the values by [..., heads, q, n], for pictures."""
        return _weights(self._split(self.query(queries)), self._split(self.key(keys)), mask)

    def _joined(self, found: Tensor) -> Tensor:
        """Return [..., q, width] of what the heads found [..., heads, q, width / heads]."""
        output: Tensor = self.output(found.transpose(-3, -2).flatten(-2))
        return output

    def _split(self, x: Tensor) -> Tensor:
        """Return [..., heads, n, width / heads]."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(-3, -2)


def _weights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)


@contextmanager
def recorded_attention() -> Iterator[list[Tensor]]:
    """Collect the weights [..., heads, q, n] of every `SetAttention` that this thread applies within the block."""
    found: list[Tensor] = []
    thread = threading.get_ident()

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, SetAttention) and threading.get_ident() == thread:
            queries, keys, _, mask = inputs
            found.append(module.weights(queries, keys, mask))

    hook = register_module_forward_pre_hook(record)
    try:
        yield found
    finally:
        hook.remove()


class SetTransformer(nn.Module):
    """Layers in which tokens attend to a set: the support tokens of the same layer, and a learned one."""

    def __init__(
        self, inputs: int, width: int, outputs: int, layers: int, heads: int, hidden: int, embedding_depth: int
    ) -> None:
        super().__init__()
        self.embedding = FeedForward(inputs, width, width, embedding_depth)
        self.start = nn.Parameter(torch.zeros(1, width))
        self.layers = nn.ModuleList(SetLayer(width, heads, hidden) for _ in range(layers))
        self.output = FeedForward(width, hidden, outputs, 2)

    def forward(self, pairs: Tensor, mask: Tensor, given: Tensor | tuple[()]) -> Tensor:
        """Return the support tokens of each layer [layers, n + 1, width]; outputs [n, outputs] where these are `given`.

        mask: which support examples are members [n]; the learned token, the last of a layer, always is.
        """
        tokens, mask = self.embedding(pairs), torch.cat([mask, mask.new_ones(1)])
        if not isinstance(given, Tensor):
            tokens, kept = torch.cat([tokens, self.start]), []
            for layer in self.layers:
                kept.append(tokens)
                tokens = layer(tokens, tokens, mask)
            return torch.stack(kept)
        for layer, others in zip(self.layers, given, strict=True):
            tokens = layer(tokens, others, mask)
        outputs: Tensor = self.output(tokens)
        return outputs


class SetLayer(nn.Module):
    """Attention and two linear layers, each added to its input and normalised after (as in Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = SetAttention(width, width, width, heads)
        self.linear = FeedForward(width, hidden, width, 2)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        """Return tokens [n, width] that have attended to `others` [m, width], of which `mask` [m] are members."""
        tokens = self.first_norm(tokens + self.attention(tokens, others, others, mask))
        normed: Tensor = self.second_norm(tokens + self.linear(tokens))
        return normed
