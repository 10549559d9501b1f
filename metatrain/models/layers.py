"""Replace fused torch layers that lack a second derivative or an efficient vmap rule (torch 2.14)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GlobalMean(nn.Module):
    """Average over positions: [n, C, H, W] -> [n, C], or [n, C, 1, 1] with `keepdim`.

    vmap has only a slow path, with a warning, for nn.AdaptiveAvgPool2d(1) on channels-last memory.
    """

    def __init__(self, keepdim: bool = False) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=self.keepdim)


class HardSigmoid(nn.Module):
    """Compute min(1, max(0, x/6 + 1/2)) (Howard et al. 2019); nn.Hardsigmoid has no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / 6 + 0.5).clamp(0, 1)


class Attention(nn.Module):
    """Compute softmax(Q Kᵀ / √d) V per head (Vaswani et al. 2017, eq. 1) with nn.MultiheadAttention's parameters.

    Self-attention only: query = key = value [n, length, D]. torch's fused attention has no second derivative.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = fused.num_heads
        self.in_proj_weight, self.in_proj_bias, self.out_proj = fused.in_proj_weight, fused.in_proj_bias, fused.out_proj

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        assert query is key is value and not need_weights
        n, length, width = query.shape
        d = width // self.heads
        mixed = F.linear(query, self.in_proj_weight, self.in_proj_bias).view(n, length, 3, self.heads, d)
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * d**-0.5).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(n, length, width)), None


class GRUCell(nn.Module):
    """Compute r, z = σ(…), n = tanh(W x + b + r ∘ (U h + c)) and h' = (1 − z) ∘ n + z ∘ h (Cho et al. 2014).

    As nn.GRUCell, of elementary operations (see `LSTMCell`), without its layer W x + b, which is computed for all steps
    at once.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.state = nn.Linear(width, 3 * width)

    def forward(self, given: Tensor, h: Tensor) -> Tensor:
        """Return h' [..., width]. given: W x + b [..., 3 width]; h: [..., width]."""
        given_r, given_z, given_n = given.chunk(3, -1)
        own_r, own_z, own_n = self.state(h).chunk(3, -1)
        r, z = torch.sigmoid(given_r + own_r), torch.sigmoid(given_z + own_z)
        n = torch.tanh(given_n + r * own_n)
        return n + z * (h - n)


class LSTMCell(nn.Module):
    """Compute i, f, o = σ(…), u = tanh(…) of W [x, h] + b, c' = f ∘ c + i ∘ u and h' = o ∘ tanh(c'), of size width.

    inputs: how many numbers x and h have together; h may hold more than h'. Elementary operations: torch's LSTM has no
    second derivative on GPUs and no rule for vmap.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.gates = nn.Linear(inputs, 4 * width)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return h' and c' [..., width]."""
        i, f, o, u = self.gates(torch.cat([x, hidden], -1)).chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * u.tanh()
        return o.sigmoid() * cell.tanh(), cell
