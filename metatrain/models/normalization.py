"""Normalise batches without running statistics, so that nothing leaks from one task to the next.

Transductive: statistics of the given batch, so that queries normalise each other (as in MAML).
Inductive: statistics of the support set, so that no query influences another's prediction.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from metatrain.models.protocol import NormalizationSetting
from tasks.types import Tree

GROUP = 8
"""Channels of a group that is normalised together."""

_reference_rows: ContextVar[int | None] = ContextVar("reference_rows", default=None)
_fused: ContextVar[bool] = ContextVar("fused", default=True)


@contextmanager
def reference_statistics(rows: int | None) -> Iterator[None]:
    """Let every TaskNorm compute its statistics from the first `rows` examples only; None: from all."""
    token = _reference_rows.set(rows)
    try:
        yield
    finally:
        _reference_rows.reset(token)


@contextmanager
def unfused_norm() -> Iterator[None]:
    """Let TaskNorm use elementary operations, which take a quarter longer, instead of the fused batch_norm.

    For vmap: torch 2.14 cannot vmap the second derivative of its fused batch_norm ("accessing `data`").
    """
    token = _fused.set(False)
    try:
        yield
    finally:
        _fused.reset(token)


def mixes_examples(outputs: Callable[[Tree], Tensor], x: Tree) -> bool:
    """Return whether another last example moves the outputs of those before it. x: [n, ...], n at least 2, or a tree.

    `outputs` maps x to [n, ...]. It sees equal shapes twice, so that an output of one example alone is equal twice.
    """
    changed = tree_map(lambda leaf: torch.cat([leaf[:-1], 2 * leaf[-1:] + 1]), x)
    with torch.no_grad():
        before, after = outputs(x)[:-1], outputs(changed)[:-1]
    return bool((after - before).abs().max() > 1e-5 * before.abs().max())


class GroupNorm(nn.Module):
    """Compute γ (x − μ) / √(σ² + ε) + β, μ and σ² of one example (Wu & He 2018).

    x: [n, C, ...]. They are over positions and 8 channels at a time; where 8 does not divide C, over all channels.
    Of elementary operations, whose second derivatives vmap can take.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.groups = channels // GROUP if channels % GROUP == 0 else 1
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(len(x), self.groups, -1)
        variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
        normalised = ((grouped - mean) * torch.rsqrt(variance + self.eps)).view(x.shape)
        shape = [1, -1] + [1] * (x.dim() - 2)
        return torch.addcmul(self.bias.view(shape), normalised, self.weight.view(shape))


def normalization_layer(setting: NormalizationSetting, channels: int) -> nn.Module | None:
    """Return the layer of an architecture's setting `normalization`; None for "none"."""
    if setting == "none":
        return None
    return GroupNorm(channels) if setting == "group" else TaskNorm(channels)


class TaskNorm(nn.Module):
    """Compute γ (x − μ) / √(σ² + ε) + β, μ and σ² over examples and positions per channel (Ioffe & Szegedy 2015).

    x: [n, C, ...] with at least two values per channel.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        rows = _reference_rows.get()
        if rows is None and _fused.get():
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        over = [d for d in range(x.dim()) if d != 1]
        variance, mean = torch.var_mean(x[:rows], dim=over, correction=0, keepdim=True)
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = self.weight.view(shape) * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias.view(shape) - mean * scale, x, scale)
