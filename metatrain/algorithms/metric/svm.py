"""Solve the dual of a multi-class support vector machine, as a differentiable function of its kernel.

An interior-point method finds which constraints hold with equality; given these, the optimum solves a linear system,
through which ordinary differentiation is exact (the implicit function theorem at the KKT conditions).
"""

import torch
from torch import Tensor

_STEPS = 30
"""Interior-point steps: the complementarity falls about fivefold in each, from 1 to below 1e-12."""
_CENTRING, _TO_BOUNDARY = 0.1, 0.99
_CONVERGED = 1e-13


def solve_svm(kernel: Tensor, labels: Tensor, c: float) -> Tensor:
    """Return A [n, N] that minimises ½ tr Aᵀ K A − tr Aᵀ Y with A ≤ C·Y and rows that sum to zero.

    kernel: K [n, n], symmetric and positive definite. labels: Y [n, N], one-hot. It is the dual of the SVM of Crammer &
    Singer (2001). The constraints that hold with equality are found in float64 without a graph.
    """
    with torch.no_grad():
        free = _free_variables(kernel.detach().double(), labels.double(), c)
    return _optimum_given(free.to(kernel.dtype), kernel, labels, c)


def _free_variables(kernel: Tensor, labels: Tensor, c: float) -> Tensor:
    """Return a mask [n, N] of the variables that are below their bounds at the optimum.

    The primal-dual method: s = C·Y − A > 0, z > 0, K A − Y + ν 1ᵀ + z = 0, A 1 = 0, s z = μ → 0. Each Newton step
    solves (K + diag(z/s)_k) dA_k = r_k − dν for every class k, with Σ_k dA_k = 0.
    """
    ways, upper = labels.shape[1], c * labels
    a = 0.5 * c * (labels - (1 - labels) / (ways - 1))
    slack = upper - a
    z = torch.ones_like(a)
    nu = torch.zeros_like(a[:, :1])
    for _ in range(_STEPS):
        mu = (slack * z).mean()
        residual = kernel @ a - labels + nu + z
        wanted = _CENTRING * mu / slack - z
        da, dnu = _newton_step(kernel, z / slack, -residual - wanted)
        dz = wanted + z / slack * da
        length = torch.minimum(_longest(slack, -da), _longest(z, dz))
        # A converged task stays as it is: further steps would divide by zero.
        length = torch.where(mu > _CONVERGED * c, length, torch.zeros_like(length))
        a, nu, z = a + length * da, nu + length * dnu, z + length * dz
        slack = slack - length * da
    # Both in the unit of a gradient. Inductor cannot lower `diagonal` without a deprecated call (torch 2.14).
    ratio = slack * (kernel * torch.eye(len(kernel), device=kernel.device)).sum() / len(kernel) / z
    # The most certain one of each example is free, as at the optimum, where its row sums to zero.
    return (ratio > 1) | (ratio == ratio.amax(1, keepdim=True))


def _newton_step(kernel: Tensor, barrier: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return dA [n, N] and dν [n, 1] with (K + diag(barrier_k)) dA_k + dν = right_k and Σ_k dA_k = 0."""
    inverses = torch.linalg.inv(kernel + torch.diag_embed(barrier.T))  # [N, n, n]
    alone = (inverses @ right.T[:, :, None]).squeeze(2).T
    dnu = torch.linalg.solve(inverses.sum(0), alone.sum(1, keepdim=True))
    return alone - (inverses @ dnu).squeeze(2).T, dnu


def _longest(value: Tensor, change: Tensor) -> Tensor:
    """Return the longest step ≤ 1 that leaves `value` + step · change positive."""
    allowed = torch.where(change < 0, -_TO_BOUNDARY * value / change, torch.ones_like(value))
    return allowed.amin().clamp(max=1)


def _optimum_given(free: Tensor, kernel: Tensor, labels: Tensor, c: float) -> Tensor:
    """Return A that solves K A − Y + ν 1ᵀ = 0 where it is free and is C·Y elsewhere, with rows that sum to zero."""
    bound = (1 - free) * c * labels
    eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    masks = free.T[:, :, None]  # [N, n, 1]
    inverses = masks * torch.linalg.inv(masks * kernel * free.T[:, None, :] + (1 - masks) * eye)
    alone = (inverses @ (free * (labels - kernel @ bound)).T[:, :, None]).squeeze(2).T
    reduced = (inverses * free.T[:, None, :]).sum(0)
    nu = torch.linalg.solve(reduced, (alone + bound).sum(1, keepdim=True))
    optimum: Tensor = bound + alone - (inverses @ (masks * nu)).squeeze(2).T
    return optimum
