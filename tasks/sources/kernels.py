"""Covariance functions of Gaussian processes over one input, for `gaussian_process` tasks."""

from collections.abc import Callable

import numpy as np

from tasks.random import Reals

Kernel = Callable[[Reals, Reals], Reals]
"""(distances |x − x'|, length scales that broadcast with them) -> correlations, 1 at distance 0."""


def eq(distance: Reals, length: Reals) -> Reals:
    """Return exp(−d²/(2ℓ²)), the exponentiated quadratic."""
    found: Reals = np.exp(-0.5 * np.square(distance / length))
    return found


def matern(distance: Reals, length: Reals) -> Reals:
    """Return (1 + √5 d/ℓ + 5d²/(3ℓ²)) exp(−√5 d/ℓ), the Matérn kernel of smoothness 5/2."""
    scaled = np.sqrt(5) * distance / length
    found: Reals = (1 + scaled + np.square(scaled) / 3) * np.exp(-scaled)
    return found


def weakly_periodic(distance: Reals, length: Reals) -> Reals:
    """Return exp(−d²/(2(2ℓ)²)) exp(−2 sin²(πd/ℓ)): of period ℓ, correlated over a few periods."""
    found: Reals = eq(distance, 2 * length) * np.exp(-2 * np.square(np.sin(np.pi * distance / length)))
    return found


KERNELS: dict[str, Kernel] = {"eq": eq, "matern": matern, "weakly_periodic": weakly_periodic}
"""The kernels by name."""
