"""Compute how well distance predicts the loss in accuracy: Spearman's rank correlation with a bootstrap interval."""

import math

import numpy as np

from metatrain.similarity.distances import Interval, Reals

LEAST = 4
"""Points from which an interval is told: of fewer, most resamples have too few different ones."""
_RESAMPLES, _SEED = 2000, 29


def spearman(x: Reals, y: Reals) -> float:
    """Return ρ, the correlation of the ranks of x [n] and y [n], equal values sharing the mean of theirs.

    nan where one of them is constant.
    """
    a, b = (_ranks(np.asarray(values, dtype=np.float64)) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else math.nan


def spearman_interval(x: Reals, y: Reals) -> Interval:
    """Return ρ with its 95 % interval: a percentile bootstrap over the n points, which it takes for independent.

    Points of one run share its accuracy at home, so the interval is on the narrow side. Resamples in which x or y is
    constant say nothing. nan for fewer than LEAST points.
    """
    value = spearman(x, y)
    if len(x) < LEAST or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    chosen = np.random.default_rng(_SEED).integers(0, len(x), (_RESAMPLES, len(x)))
    found = np.array([spearman(x[one], y[one]) for one in chosen])
    low, high = np.percentile(found[np.isfinite(found)], (2.5, 97.5))
    return Interval(value, float(low), float(high))


def _ranks(values: Reals) -> Reals:
    below = (values[None] < values[:, None]).sum(1)
    ranks: Reals = below + ((values[None] == values[:, None]).sum(1) - 1) / 2
    return ranks
