"""Solve for a step within a trust region: conjugate gradient and backtracking, for whoever computes their products.

Both are generators: they yield what is to be computed and receive it, so that the products of a search may come from
workers (Schulman et al. 2015, "Trust region policy optimization", appendix C).
"""

from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch

from metatrain.types import Params

_SMALL = 1e-10
"""The square of the residual at which conjugate gradient ends."""


class Solution(NamedTuple):
    """x with F x ≈ b, and xᵀ F x."""

    x: Params
    curvature: float


def conjugate_gradient(b: Params, iterations: int, damping: float) -> Generator[Params, Params, Solution]:
    """Solve (F + damping · I) x = b; yields vectors p and receives F p each (Hestenes & Stiefel 1952).

    xᵀ F x needs no product more: F x is b less the residual.
    """
    x = {name: torch.zeros_like(value) for name, value in b.items()}
    r = p = b
    rr = dot(r, r)
    for _ in range(iterations):
        if rr < _SMALL:
            break
        product = yield p
        q = add(product, p, damping)
        along = dot(p, q)
        if not along > 0:  # rounding, or no positive curvature is left
            break
        alpha = rr / along
        x, r = add(x, p, alpha), add(r, q, -alpha)
        before, rr = rr, dot(r, r)
        p = add(r, p, rr / before)
    return Solution(x, dot(x, add(b, r, -1.0)))


def backtrack(params: Params, step: Params, shrink: float, most: int) -> Iterator[Params]:
    """Yield θ − shrink^i · step for i = 0, 1, …: the candidates of a line search, at most `most`."""
    for i in range(most):
        yield add(params, step, -(shrink**i))


def add(a: Params, b: Params, scale: float) -> Params:
    """Return a + scale · b."""
    return {name: value + scale * b[name] for name, value in a.items()}


def dot(a: Params, b: Params) -> float:
    """Return aᵀ b, added in float64 in name order."""
    return sum(float((a[name].double() * b[name].double()).sum()) for name in sorted(a))
