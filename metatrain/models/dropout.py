"""Drop units by masks hashed from the task's noise key, not drawn from a generator's state.

torch's own dropout draws from a global generator, so that a mask would depend on which worker ran which task before.
Here the mask is a hash of (task, inner step, layer, position): equal wherever and however often it is computed,
under vmap and when an inner step is recomputed.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NO_NOISE = -1
"""The noise key that turns everything random off: in evaluation, and when adapting to a user's data."""


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN, _MIX1, _MIX2 = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch's `>>` on int64 is arithmetic."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(z: Tensor) -> Tensor:
    """Hash int64 to int64 elementwise by the splitmix64 finaliser (Steele et al. 2014); overflow wraps as intended."""
    z = z * _GOLDEN + _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def fold(noise: Tensor, number: int | Tensor) -> Tensor:
    """Derive the key for `number` (an inner step, a layer) from a task's key; NO_NOISE stays NO_NOISE."""
    return torch.where(noise < 0, noise, splitmix64(noise + number * 0x632BE5AB) & ((1 << 62) - 1))


def positions(count: int, device: torch.device) -> Tensor:
    """Return 0, 1, …, count − 1 as int64, to be hashed.

    `^ 0` keeps inductor from folding the hash's first product into its loop index, in signed arithmetic that must not
    overflow: the loop would end early, or never (torch 2.14).
    """
    return torch.arange(count, device=device) ^ 0


def uniform(noise: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """Return float64 numbers in [0, 1) of `shape`, one per position, all determined by `noise`."""
    position = positions(shape.numel(), device).view(shape)
    return _shift_right(splitmix64(splitmix64(position) ^ noise), 11).to(torch.float64) * 2.0**-53


def normal(noise: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """Return float64 numbers of `shape`, standard normal and determined by `noise`; zeros for NO_NOISE.

    √(−2 ln(1 − u)) cos(2π v), u and v uniform (Box & Muller 1958).
    """
    u, v = (uniform(fold(noise, number), shape, device) for number in (0, 1))
    drawn = (-2 * (1 - u).log()).sqrt() * (2 * math.pi * v).cos()
    return torch.where(noise < 0, torch.zeros_like(drawn), drawn)


def _probability(p: float) -> float:
    if not 0 <= p < 1:
        raise ValueError(f"p: {p} is no probability of dropping: set 0 <= p < 1")
    return p


class Dropout(nn.Module):
    """x · keep / (1 − p), keep ~ Bernoulli(1 − p) addressed by `noise` (Srivastava et al. 2014). x: any shape."""

    noise: Tensor

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = _probability(p)
        # A buffer, so that `functional_call` can set each task's key.
        self.register_buffer("noise", torch.tensor(NO_NOISE), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        keep = (uniform(self.noise, x.shape, x.device) >= self.p).to(x.dtype) / (1 - self.p)
        return x * torch.where(self.noise < 0, torch.ones_like(keep), keep)


class DropBlock(nn.Module):
    """x · M · |M| / ΣM, with M zero on b × b blocks, drawn for each channel (Ghiasi, Lin & Le 2018, algorithm 1).

    A block starts with probability γ = p / b² · HW / ((H − b + 1)(W − b + 1)) wherever it fits; since blocks overlap,
    this drops slightly less than p. b is `block`, at most the smaller side of the map. x: [n, C, H, W].
    """

    noise: Tensor

    def __init__(self, p: float = 0.1, block: int = 5) -> None:
        super().__init__()
        self.p, self.block = _probability(p), block
        self.register_buffer("noise", torch.tensor(NO_NOISE), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        *each, height, width = x.shape
        b = min(self.block, height, width)
        fits = torch.Size([*each, height - b + 1, width - b + 1])
        gamma = self.p / b**2 * (height * width) / math.prod(fits[-2:])
        begins = (uniform(self.noise, fits, x.device) < gamma).to(x.dtype)
        # A position is dropped if a block starts at any of the b × b corners that reach it.
        keep = 1 - F.max_pool2d(F.pad(begins, [b - 1] * 4), b, stride=1)
        scaled = keep * (keep.numel() / keep.sum().clamp(min=1))
        return x * torch.where(self.noise < 0, torch.ones_like(keep), scaled)


ADDRESSED = (Dropout, DropBlock)
"""The layers whose buffer `noise` a Model sets to the task's key."""
