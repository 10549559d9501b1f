"""Compute by what `reference.maml` moves each weight, for methods that learn it: explicit sums over all indices."""

import torch
from torch import Tensor


def by_own_rates(theta: dict[str, Tensor], name: str, slope: Tensor) -> Tensor:
    return theta[f"inner_lr.{name}"] * slope


def by_curvature(theta: dict[str, Tensor], name: str, slope: Tensor) -> Tensor:
    own = f"curvature.{name}"
    if slope.dim() == 1:
        return theta[own + ".out"] * slope
    if slope.dim() == 2:
        return torch.einsum("po,qi,oi->pq", theta[own + ".out"], theta[own + ".in"], slope)
    matrices = theta[own + ".out"], theta[own + ".in"], theta[own + ".position"]
    modes = slope.reshape(slope.shape[0], slope.shape[1], -1)
    return torch.einsum("po,qi,rf,oif->pqr", *matrices, modes).reshape(slope.shape)
