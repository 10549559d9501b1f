"""Define the terms [E, T] whose mean over steps has a policy gradient as its gradient.

log π: of the actions taken, under the policy that is differentiated; A: advantages, or rewards where it says so. ⊥x is
x as a constant. All of them have the gradient E ∇log π A; they differ in their second derivatives, and in what they are
away from the policy that acted.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Estimator = Literal["likelihood", "lvc", "dice"]


def likelihood(log_p: Tensor, advantages: Tensor, rewards: Tensor) -> Tensor:
    """Return log π A, as MAML's authors use it: its Hessian lacks the term ∇log π ∇log πᵀ A."""
    return log_p * advantages


def low_variance_curvature(log_p: Tensor, advantages: Tensor, rewards: Tensor) -> Tensor:
    """Return π / ⊥π A, whose Hessian lacks the terms between steps only (Rothfuss et al. 2019, "ProMP", eq. 13)."""
    return (log_p - log_p.detach()).exp() * advantages


def dice(log_p: Tensor, advantages: Tensor, rewards: Tensor) -> Tensor:
    """Return Π_{t' ≤ t} π / ⊥π r: all its derivatives are unbiased, of high variance (Foerster et al. 2018)."""
    return (log_p - log_p.detach()).cumsum(-1).exp() * rewards


ESTIMATORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "likelihood": likelihood,
    "lvc": low_variance_curvature,
    "dice": dice,
}
"""The surrogates of an inner step, by the names of `Estimator`."""


def importance(log_p: Tensor, acted: Tensor, advantages: Tensor) -> Tensor:
    """Return π / π_old A: how much better the policy is than the one that acted, to first order.

    acted: log π_old (Schulman et al. 2015, "Trust region policy optimization", eq. 14).
    """
    return (log_p - acted).exp() * advantages


def mean_of_steps(terms: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of terms [E, T] over the steps of all episodes."""
    return (terms * mask).sum() / mask.sum().clamp(min=1e-12)
