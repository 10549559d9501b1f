"""Define the terms [E, T] whose mean over steps has a policy gradient as its gradient.

log π: of the actions taken, under the policy that is differentiated; `acted`: the same under the policy that acted, a
constant; A: advantages; r: rewards. Where the two policies are the same, all of them have the gradient E ∇log π A.
They differ in their second derivatives, and in what they are away from the policy that acted.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["likelihood", "lvc", "dice"]

Terms = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(log π, acted, A, r) -> terms, each [E, T]."""


def likelihood(log_p: Tensor, acted: Tensor, advantages: Tensor, rewards: Tensor) -> Tensor:
    """Return log π A, as MAML's authors use it: its Hessian lacks the term ∇log π ∇log πᵀ A."""
    return log_p * advantages


def importance(log_p: Tensor, acted: Tensor, advantages: Tensor, rewards: Tensor) -> Tensor:
    """Return π / π_old A: how much better the policy is than the one that acted, to first order.

    Its Hessian lacks the terms between steps only: it is of low variance ("LVC", Rothfuss et al. 2019, "ProMP", eq. 13;
    Schulman et al. 2015, "Trust region policy optimization", eq. 14).
    """
    return (log_p - acted).exp() * advantages


def dice(log_p: Tensor, acted: Tensor, advantages: Tensor, rewards: Tensor) -> Tensor:
    """Return Π_{t' ≤ t} π / π_old r: unbiased with all its derivatives, of high variance (Foerster et al. 2018)."""
    return (log_p - acted).cumsum(-1).exp() * rewards


def clipped(log_p: Tensor, acted: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return min(ρ A, clip(ρ, 1 − ε, 1 + ε) A), ρ = π / π_old (Schulman et al. 2017, "PPO", eq. 7). clip: ε."""
    ratio = (log_p - acted).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


ESTIMATORS: dict[str, Terms] = {
    "likelihood": likelihood,
    "lvc": importance,
    "dice": dice,
}
"""The surrogates of an inner step, by the names of `Estimator`."""


def mean_of_steps(terms: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of terms [E, T] over the steps of all episodes."""
    return (terms * mask).sum() / mask.sum().clamp(min=1e-12)
