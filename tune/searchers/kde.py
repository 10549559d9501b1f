"""The density of configurations: a mixture of a product kernel for each observation, and of the prior.

    l(x) = 1 / (n + 1) · (1 + Σᵢ wᵢ Πⱼ Kⱼ(xⱼ, xᵢⱼ)),  n = Σᵢ wᵢ

An observation's weight wᵢ is 1, or less where it is of another search (`tune.searchers.warm_start`).
Numbers are taken at their quantiles in [0, 1], where the prior is 1. Their kernel is a normal one, reflected at both
ends (Schuster 1985), for what is best often lies at an end; its width is Scott's, σⱼ n^(-1 / (d + 4)), and no less than
WIDTH / (n + 1), without which a few good points close together are never left again. That of categories keeps the
observed one with probability 1 - λ (Aitchison and Aitken 1976); λ narrows as widths do, from what chance alone would
change, 1 - Σ p². Where a parameter is not there, its factor is the prior's, on either side: configurations with
different parameters are compared by those that they share.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tune.space.distributions import Choice, Value
from tune.space.search_space import Space

WIDTH = 0.5
Floats = NDArray[np.float64]


class Density(NamedTuple):
    """points: [m, d] quantiles, nan where a parameter is not there; weights: [m]; widths: [d], σ or λ; options: [d], 0
    if numbers.
    """

    points: Floats
    weights: Floats
    widths: Floats
    options: NDArray[np.int64]

    def log(self, x: Floats) -> Floats:
        """log l at each row of x: [m, d] -> [m]."""
        product = np.ones((len(x), len(self.points)))
        for j, (width, count) in enumerate(zip(self.widths, self.options, strict=True)):
            at, near = x[:, j, None], self.points[None, :, j]
            kernel = _same_or_not(at, near, width, count) if count else _reflected(at, near, width)
            product *= np.where(np.isnan(at) | np.isnan(near), 1.0, kernel)
        return np.asarray(np.log1p((product * self.weights).sum(axis=1)) - np.log1p(self.weights.sum()))

    def log_apart(self, x: Floats, points: Floats) -> Floats:
        """log Πᵢ (1 - Πⱼ kⱼ(xⱼ, pᵢⱼ)), k a kernel over its peak: how far each row of x is from all `points`, [p, d].

        Local penalisation (González et al. 2016) with the widths of this density.
        """
        likeness = np.ones((len(x), len(points)))
        for j, (width, count) in enumerate(zip(self.widths, self.options, strict=True)):
            at, near = x[:, j, None], points[None, :, j]
            same = np.floor(at * count) == np.floor(near * count)
            kernel = same if count else np.exp(-0.5 * ((at - near) / width) ** 2)
            likeness *= np.where(np.isnan(at) | np.isnan(near), np.isnan(at) == np.isnan(near), kernel)
        # A logarithm of zero is none: a tenth of a width away is as near as the same.
        return np.asarray(np.log1p(-likeness * (1 - 5e-3)).sum(axis=1))

    def draw(self, uniforms: Floats) -> Floats:
        """A row for each of `uniforms`, [m, 1 + 2d]: one of the kernels, or the prior, and a draw from it: [m, d]."""
        upto = np.cumsum(np.append(self.weights, 1.0))
        number = np.minimum(np.searchsorted(upto, uniforms[:, 0] * upto[-1], side="right"), len(self.points))
        u, v = uniforms[:, 1::2], uniforms[:, 2::2]
        chosen = np.vstack([self.points, np.full_like(self.widths, np.nan)])[number]
        # Box and Muller (1958), folded back into [0, 1].
        moved = np.mod(chosen + self.widths * np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v), 2)
        numbers = np.minimum(moved, 2 - moved)
        # Any of the other options, each as likely: one to all but one of them further, around the end.
        counts = np.maximum(self.options, 1)
        further = (1 + np.floor(v * np.maximum(counts - 1, 1))) / counts
        categories = np.where(u < self.widths, np.mod(chosen + further, 1.0), chosen)
        drawn = np.where(self.options > 0, categories, numbers)
        return np.where(np.isnan(chosen), v, np.minimum(drawn, np.nextafter(1.0, 0.0)))


def fitted(
    space: Space, configurations: Sequence[Mapping[str, Value]], weights: Sequence[float] | None = None
) -> Density:
    """The density of some configurations, which weigh 1 each where nothing else is said."""
    points = quantiles(space, configurations)
    weighed = np.ones(len(points)) if weights is None else np.array(weights, dtype=np.float64)
    domains = [parameter.domain for parameter in space.parameters]
    options = np.array([len(domain.options) if isinstance(domain, Choice) else 0 for domain in domains], dtype=np.int64)
    there = ~np.isnan(points)
    widths = [
        _width(points[there[:, j], j], weighed[there[:, j]], count, len(domains))
        for j, count in enumerate(options.tolist())
    ]
    return Density(points, weighed, np.array(widths), options)


def quantiles(space: Space, configurations: Sequence[Mapping[str, Value]]) -> Floats:
    """[n, d], nan where a parameter is not there."""
    rows = [[p.domain.quantile(x[p.name]) if p.name in x else np.nan for p in space.parameters] for x in configurations]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(space.parameters))


def _width(there: Floats, weights: Floats, count: int, dimensions: int) -> float:
    """Of the kernels of one parameter; there: its quantiles, [m]. count: of its options, 0 if it is a number."""
    n = float(weights.sum())
    if count:
        shares = np.bincount((there * count).astype(int), weights, minlength=count) / max(n, 1)
        spread, most = 1 - float((shares**2).sum()), 1 - 1 / count
    else:
        # One observation has no spread of its own: that of the prior stands in.
        spread, most = _deviation(there, weights) if n > 1 else 12**-0.5, 1.0
    return float(min(max(spread * max(n, 1) ** (-1 / (dimensions + 4)), WIDTH / (n + 1)), most))


def _deviation(there: Floats, weights: Floats) -> float:
    apart = there - (weights * there).sum() / weights.sum()
    return float(np.sqrt((weights * apart**2).sum() / weights.sum()))


def _reflected(at: Floats, near: Floats, width: float) -> Floats:
    """Those images of a normal kernel that reach into [0, 1]."""
    images = sum((np.exp(-0.5 * ((at - image) / width) ** 2) for image in (near, -near, 2 - near)), np.zeros(()))
    return np.asarray(images / (width * np.sqrt(2 * np.pi)))


def _same_or_not(at: Floats, near: Floats, width: float, count: int) -> Floats:
    """In units of the prior, which is 1 / count for each option."""
    same = np.floor(at * count) == np.floor(near * count)
    return np.asarray(count * np.where(same, 1 - width, width / (count - 1)))
