"""Compute with densities that learners predict for values: their logarithm, mean, and probability below a value.

All take densities with any leading dimensions before [n, ...], and are written out so that vmap and compilation pass.
"""

import math

import torch
from torch import Tensor

from metatrain.types import Density, Gaussian, Prediction

_COMPONENT = -2
"""The dimension of a mixture's components [..., n, S, d], counted from the end: there may be more in front."""


def mean_of(prediction: Prediction) -> Tensor:
    """Return the predicted values [..., n, *y]: themselves, or the means of densities."""
    if isinstance(prediction, Tensor):
        return prediction
    if isinstance(prediction, Gaussian):
        return prediction.mean
    return prediction.mean.mean(_COMPONENT)


def log_density(prediction: Density, y: Tensor) -> Tensor:
    """Return log p(y) of each query [..., n], in nats: summed over the parts of a y. y: [n, *y]."""
    parts = y.dim() - 1
    if isinstance(prediction, Gaussian):
        return _sum_of_parts(_log_normal(prediction.mean, prediction.std, y), parts)
    of_each = _sum_of_parts(_log_normal(prediction.mean, prediction.std, y.unsqueeze(1)), parts)  # [..., n, S]
    return of_each.logsumexp(-1) - math.log(of_each.shape[-1])


def std_of(prediction: Density) -> Tensor:
    """Return the standard deviations [..., n, *y]."""
    if isinstance(prediction, Gaussian):
        return prediction.std
    of_means = prediction.mean.var(_COMPONENT, correction=0)
    return (prediction.std.square().mean(_COMPONENT) + of_means).sqrt()


def probability_below(prediction: Density, y: Tensor) -> Tensor:
    """Return P(Y ≤ y) of each part of each query [..., n, *y]: uniform on [0, 1] if the densities are right."""
    if isinstance(prediction, Gaussian):
        return _normal_cdf((y - prediction.mean) / prediction.std)
    return _normal_cdf((y.unsqueeze(1) - prediction.mean) / prediction.std).mean(_COMPONENT)


def _log_normal(mean: Tensor, std: Tensor, y: Tensor) -> Tensor:
    return -0.5 * ((y - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))


def _sum_of_parts(values: Tensor, parts: int) -> Tensor:
    return values.flatten(-parts).sum(-1) if parts else values
