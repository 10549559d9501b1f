"""Compute 95 % intervals of a mean over tasks: of other tasks of the same classes, and of other classes."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metatrain.metrics import Metric

_EXACT = 30
"""Degrees of freedom up to which the quantile is exact; from here on the expansion is, to seven digits."""
_NORMAL = 1.959963984540054


def mean_and_ci95(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over tasks and t s/√n, t of Student's distribution with n - 1 degrees of freedom, s the sample
    standard deviation: half the interval over tasks, nan for a single task. scores: [n, ...].
    """
    n = len(scores)
    if n < 2:
        return scores.mean(0), torch.full_like(scores.mean(0), math.nan)
    return scores.mean(0), student_t(n - 1) * scores.std(0) / n**0.5


def pooled_and_ci95(sums: Tensor, of_sums: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return θ = f(Σ_t s_t), of the sums s_t of n tasks, and half its 95 % interval over tasks, nan for a single task.

    sums: [n, ...]. of_sums: f, from [..., *shape] to [...].

    θ is no mean over tasks, so its error is that of the jackknife (Efron & Stein 1981): with θ₋t = f without task t,
    V = (n - 1)/n Σ_t (θ₋t - θ̄)², which of a mean is s²/n exactly. The interval is t √V, as that of `mean_and_ci95`.
    """
    n, total = len(sums), sums.sum(0)
    value = of_sums(total)
    if n < 2:
        return value, torch.full_like(value, math.nan)
    without = of_sums(total - sums)
    return value, student_t(n - 1) * (without.var(0, correction=0) * (n - 1)).sqrt()


def estimate(metric: Metric, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a metric over all tasks and half its 95 % interval over tasks. values: of each task [tasks, ...]."""
    return mean_and_ci95(values) if metric.of_sums is None else pooled_and_ci95(values, metric.of_sums)


class OverClasses(NamedTuple):
    """The error of a mean over tasks, as to tasks of other classes.

    variance: of that mean, None for too few classes to tell. degrees: of freedom. classes: how many different ones.
    """

    variance: float | None
    degrees: float
    classes: int

    @property
    def ci95(self) -> float | None:
        """Return half the 95 % interval."""
        return None if self.variance is None else student_t(int(self.degrees)) * math.sqrt(self.variance)


def over_classes(scores: Tensor, classes: np.ndarray[Any, Any], sources: Sequence[str] = ()) -> OverClasses:
    """Return the error of the mean of `scores` [n] over tasks of other classes of the same sources.

    classes: [n, N], the numbers of each task's classes, -1 where it has fewer. sources: the name of each task's source
    [n], of a mixture. A mixture is not drawn again with its classes: V = Σ_s (n_s / n)² V_s of its sources s, with
    V² / Σ_s (n_s / n)⁴ V_s² / d_s degrees of freedom (Satterthwaite 1946).
    """
    names = list(dict.fromkeys(sources))
    if len(names) < 2:
        return _over_classes(scores.double().numpy(), classes)
    of_source = np.array([names.index(name) for name in sources])
    places = [of_source == number for number in range(len(names))]
    found = [_over_classes(scores.double().numpy()[place], classes[place]) for place in places]
    count = sum(one.classes for one in found)
    if any(one.variance is None for one in found):
        return OverClasses(None, 1, count)
    parts = [float(place.mean()) ** 2 * (one.variance or 0.0) for place, one in zip(places, found, strict=True)]
    variance, spread = sum(parts), sum(part**2 / one.degrees for part, one in zip(parts, found, strict=True))
    return OverClasses(variance, variance**2 / spread if spread else 1, count)


def _over_classes(values: np.ndarray[Any, Any], classes: np.ndarray[Any, Any]) -> OverClasses:
    """Return the error of the mean of the tasks of one source.

    The mean is taken again without the tasks of each of C classes c, θ₋c, for a jackknife: V = (C - 1)/C Σ (θ₋c - θ)².
    Each task is left out N times, where N is the mean number of its classes, so V holds the variance s²/n of its mean N
    times, where once is right. The variance is max(s²/n, V - (N - 1) s²/n), with min(C, n) - 1 degrees of freedom.
    """
    n, each = len(classes), (classes >= 0).sum(1)
    ways = each.mean()
    known, numbers = np.unique(classes[classes >= 0], return_inverse=True)
    count = len(known)
    tasks_of = np.bincount(numbers, minlength=count)
    degrees = min(count, n) - 1
    if n < 2 or count <= each.max() + 1 or tasks_of.max() >= n:
        return OverClasses(None, degrees, count)
    of_mean = values.var(ddof=1) / n
    sums = np.bincount(numbers, weights=np.repeat(values - values.mean(), each), minlength=count)
    jackknife = (count - 1) / count * float(((sums / (n - tasks_of)) ** 2).sum())
    return OverClasses(max(of_mean, jackknife - (ways - 1) * of_mean), degrees, count)


@cache
def student_t(degrees: int) -> float:
    """Return the t with P(|T| < t) = 0.95 for Student's distribution (Abramowitz & Stegun 1964, 26.7.3 to 26.7.5)."""
    if degrees > _EXACT:
        z, inverse = _NORMAL, 1 / degrees
        terms = (
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
            (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
        )
        return z + sum(term * inverse**power for power, term in enumerate(terms, start=1))
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """Return P(|T| < √degrees tan(angle))."""
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(odd + 1, degrees, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
