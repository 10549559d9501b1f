"""Estimate how much better actions were than a baseline expects, over all episodes and steps at once.

Shapes: [E, T] of episodes and steps; masks are 1 for steps of an episode and 0 after its end.
"""

import torch
from torch import Tensor

_RIDGE = 1e-5
_MOST_OBSERVED = 10.0


def discounted_sums(values: Tensor, discount: float) -> Tensor:
    """Return Σ_{k ≥ 0} discount^k values_{t+k} at every step t. values: [..., T]."""
    steps = torch.arange(values.shape[-1], device=values.device)
    ahead = steps[:, None] - steps[None, :]  # of row t + k and column t: k
    powers = torch.pow(discount, ahead.clamp(min=0).to(values.dtype))
    return values @ torch.where(ahead >= 0, powers, 0.0)


def linear_baseline(observations: Tensor, mask: Tensor, returns: Tensor) -> Tensor:
    """Return V(o_t, t) [E, T], the least-squares fit of `returns` by features (Duan et al. 2016, §5).

    Features: o, o², t/100, (t/100)², (t/100)³ and 1, with o clipped to ±10. observations: [E, T, O].
    """
    o = observations.clamp(-_MOST_OBSERVED, _MOST_OBSERVED)
    time = (torch.arange(o.shape[-2], device=o.device, dtype=o.dtype) / 100)[:, None].expand(*o.shape[:-1], 1)
    features = torch.cat([o, o**2, time, time**2, time**3, torch.ones_like(time)], -1).double()
    used = (features * mask[..., None]).flatten(0, 1)
    ridge = _RIDGE * torch.eye(used.shape[-1], dtype=used.dtype, device=used.device)
    fitted: Tensor = torch.linalg.solve(used.T @ used + ridge, used.T @ returns.double().flatten())
    return (features @ fitted).to(returns.dtype)


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, trace: float) -> Tensor:
    """Return A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V(o_{t+1}) − V(o_t) (Schulman et al. 2016, eq. 16).

    γ: discount; λ: trace. After the end of an episode, and after its last step, V is 0.
    """
    worth = values * mask
    following = torch.cat([worth[..., 1:], torch.zeros_like(worth[..., :1])], -1)
    return discounted_sums((rewards + discount * following - worth) * mask, discount * trace) * mask


def normalised(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return advantages of mean 0 and variance 1 over the steps of all episodes, 0 after their ends."""
    count = mask.sum().clamp(min=1)
    centred = (advantages - (advantages * mask).sum() / count) * mask
    return centred / ((centred.square().sum() / count).sqrt() + 1e-8)


def advantages_in_trial(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, trace: float) -> Tensor:
    """Return A of generalised advantage estimation [N] over the steps of several episodes in a row, as if of one.

    γ and λ count steps that were taken (mask 1); the others [N] are passed over. After the last step V is 0. Takes N²
    numbers of memory.
    """
    taken = mask.cumsum(-1)
    ahead = taken[None, :] - taken[:, None]  # of step i and j: j − i, in steps taken
    both = mask[None, :] * mask[:, None]
    following = torch.where(ahead == 1, both, 0.0) @ values
    delta = (rewards + discount * following - values) * mask
    weights = torch.pow(discount * trace, ahead.clamp(min=0)) * both
    return torch.where(ahead >= 0, weights, 0.0) @ delta
