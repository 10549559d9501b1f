"""Rank trials by several objectives, all minimised: non-dominated sorting and crowding distance.

Points are [n, m]: a row for each of n trials, a column for each of m objectives. Infinity means unknown and is worse
than every number; nan is not allowed.

Two points are compared as in NSGA-II (Deb et al. 2002): by front, then by crowding distance within a front, so that the
trials that continue keep the whole front and not one region of it.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Point = Sequence[float]


def front_numbers(points: Sequence[Point]) -> list[int]:
    """Return the front of each point: 0 if no point dominates it, 1 if only points of front 0 do, and so on."""
    beaten = _dominance(points)
    found, by = np.full(len(points), -1), beaten.sum(axis=0)
    number = 0
    while (found < 0).any():
        free = (found < 0) & (by == 0)
        found[free] = number
        by = by - beaten[free].sum(axis=0)
        number += 1
    return [int(front) for front in found]


def crowding_distance(points: Sequence[Point]) -> list[float]:
    """Compute Σ_j (next_j - previous_j) / (max_j - min_j), next and previous being a point's neighbours in objective j.

    Infinity for the first and the last of an objective (Deb et al. 2002, section III.B). Of equal values the earlier
    comes first; an objective in which all are equal adds nothing. Infinite values count as the largest finite one.
    """
    found = np.zeros(len(points))
    # Half of each, so that no difference overflows.
    for column in _array(points).T / 2:
        finite = column[np.isfinite(column)]
        values = np.minimum(column, finite.max()) if len(finite) else np.zeros_like(column)
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        if span > 0:
            found[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
            found[order[[0, -1]]] = np.inf
    return [float(distance) for distance in found]


def rank_points(points: Sequence[Point]) -> list[int]:
    """Count the better points for each point: those of earlier fronts, and the less crowded ones of its own."""
    front, distance = np.array(front_numbers(points)), np.zeros(len(points))
    for number in set(front.tolist()):
        members = np.flatnonzero(front == number).tolist()
        distance[members] = crowding_distance([points[i] for i in members])
    keys = list(zip(front.tolist(), (-distance).tolist(), strict=True))
    order = sorted(keys)
    return [bisect_left(order, key) for key in keys]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no point dominates, equal ones included, in their order."""
    return [int(i) for i in np.flatnonzero(~_dominance(points).any(axis=0))]


def _dominance(points: Sequence[Point]) -> NDArray[np.bool_]:
    """Return whether point i dominates point j, at [i, j] of [n, n]."""
    x = _array(points)
    no_worse = np.asarray((x[:, None, :] <= x[None, :, :]).all(axis=2))
    return no_worse & ~no_worse.T


def _array(points: Sequence[Point]) -> Floats:
    return np.array(points, dtype=np.float64).reshape(len(points), len(points[0]) if points else 0)
