"""Compute with densities that learners predict for values: their logarithm, mean, and probability below a value.

All take densities with any leading dimensions before [n, ...], and are written out so that vmap and compilation pass.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.types import Density, Gaussian, Histogram, Prediction

_COMPONENT = -2
"""The dimension of a mixture's components [..., n, S, d], counted from the end: there may be more in front."""
_TAILS = 8
"""Standard deviations of a histogram's ends in its span."""


def mean_of(prediction: Prediction) -> Tensor:
    """Return the predicted values [..., n, *y]: themselves, or the means of densities."""
    if isinstance(prediction, Tensor):
        return prediction
    if isinstance(prediction, Gaussian):
        return prediction.mean
    if isinstance(prediction, Histogram):
        return _histogram_moments(prediction)[0]
    return prediction.mean.mean(_COMPONENT)


def log_density(prediction: Density, y: Tensor) -> Tensor:
    """Return log p(y) of each query [..., n], in nats: summed over the parts of a y. y: [n, *y]."""
    parts = y.dim() - 1
    if isinstance(prediction, Gaussian):
        return _sum_of_parts(_log_normal(prediction.mean, prediction.std, y), parts)
    if isinstance(prediction, Histogram):
        return _log_histogram(prediction, y)
    of_each = _sum_of_parts(_log_normal(prediction.mean, prediction.std, y.unsqueeze(1)), parts)  # [..., n, S]
    return of_each.logsumexp(-1) - math.log(of_each.shape[-1])


def std_of(prediction: Density) -> Tensor:
    """Return the standard deviations [..., n, *y]."""
    if isinstance(prediction, Gaussian):
        return prediction.std
    if isinstance(prediction, Histogram):
        return _histogram_moments(prediction)[1]
    of_means = prediction.mean.var(_COMPONENT, correction=0)
    return (prediction.std.square().mean(_COMPONENT) + of_means).sqrt()


def probability_below(prediction: Density, y: Tensor) -> Tensor:
    """Return P(Y ≤ y) of each part of each query [..., n, *y]: uniform on [0, 1] if the densities are right."""
    if isinstance(prediction, Gaussian):
        return _normal_cdf((y - prediction.mean) / prediction.std)
    if isinstance(prediction, Histogram):
        return _histogram_below(prediction, y)
    return _normal_cdf((y.unsqueeze(1) - prediction.mean) / prediction.std).mean(_COMPONENT)


def _log_normal(mean: Tensor, std: Tensor, y: Tensor) -> Tensor:
    return -0.5 * ((y - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))


def _sum_of_parts(values: Tensor, parts: int) -> Tensor:
    return values.flatten(-parts).sum(-1) if parts else values


class _Bins(NamedTuple):
    """A histogram's inner bins begin at [..., n, B − 2]; their width, the ends' std and the span are [..., n, 1]."""

    begins: Tensor
    width: Tensor
    tail: Tensor
    low: Tensor
    high: Tensor


def _bins_of(density: Histogram) -> _Bins:
    inner = density.logits.shape[-1] - 2
    low, high = density.span[..., :1], density.span[..., 1:]
    width = (high - low) / inner
    begins = low + width * torch.arange(inner, device=low.device, dtype=low.dtype)
    return _Bins(begins, width, (high - low) / _TAILS, low, high)


def _log_histogram(density: Histogram, y: Tensor) -> Tensor:
    """Return log p(y) [..., n]: that of y's bin, spread over its width, or of a half-normal end."""
    bins, log_p = _bins_of(density), density.logits.log_softmax(-1)
    inner = log_p.shape[-1] - 2
    number = ((y - bins.low) / bins.width).floor().clamp(-1, inner).long() + 1
    at = log_p.gather(-1, number.expand(*log_p.shape[:-1], 1))
    beyond = torch.where(y < bins.low, bins.low - y, y - bins.high)
    at_end = math.log(2) + _log_normal(torch.zeros_like(beyond), bins.tail, beyond)
    inside = (y >= bins.low) & (y < bins.high)
    return (at + torch.where(inside, -bins.width.log(), at_end))[..., 0]


def _histogram_below(density: Histogram, y: Tensor) -> Tensor:
    """Return P(Y ≤ y) [..., n, 1]."""
    bins, p = _bins_of(density), density.logits.softmax(-1)
    below = ((y - bins.begins) / bins.width).clamp(0, 1)
    first = 2 * _normal_cdf((y - bins.low).clamp(max=0) / bins.tail)
    last = 2 * _normal_cdf((y - bins.high).clamp(min=0) / bins.tail) - 1
    return (p * torch.cat([first, below, last], -1)).sum(-1, keepdim=True)


def _histogram_moments(density: Histogram) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [..., n, 1]."""
    bins, p = _bins_of(density), density.logits.softmax(-1)
    reach = bins.tail * math.sqrt(2 / math.pi)
    means = torch.cat([bins.low - reach, bins.begins + bins.width / 2, bins.high + reach], -1)
    end = bins.tail.square() * (1 - 2 / math.pi)
    variances = torch.cat([end, (bins.width.square() / 12).expand_as(bins.begins), end], -1)
    mean = (p * means).sum(-1, keepdim=True)
    variance = (p * (variances + (means - mean).square())).sum(-1, keepdim=True)
    return mean, variance.sqrt()
