"""Layers of Transformers and neural processes: feed-forward networks, and attention to a set with padding."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        q, k, v = self._split(self.query(queries)), self._split(self.key(keys)), self._split(self.value(values))
        if math.prod(q.shape[:-1]) * k.shape[-2] > _LARGE:
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(q.shape[-2], -1))
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            found = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        output: Tensor = self.output(found.transpose(-3, -2).flatten(-2))
        return output

    def _split(self, x: Tensor) -> Tensor:
        """Return [..., heads, n, width / heads]."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(-3, -2)
