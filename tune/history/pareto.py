"""Several objectives at once: who dominates whom, and what order that makes. All of them are to be small.

Points are [n, m], a row for each of n trials and a column for each of m objectives. Infinity stands for what is not
known, and is worse than every number; nan stands for nothing, and must not come.

Two are compared by non-dominated sorting and crowding distance (Deb et al. 2002, NSGA-II): fronts first, and within a
front those apart from the others, so that what goes on keeps the whole front and not one place of it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """a ≺ b: nowhere worse, and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def front_numbers(points: Sequence[Point]) -> list[int]:
    """The front of each point: 0 where nobody dominates it, 1 where only those of front 0 do, and so on."""
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
    """Σ_j (next_j - previous_j) / (max_j - min_j), next and previous being a point's neighbours in objective j.

    Infinity for the first and the last of an objective (Deb et al. 2002, section III.B). Of equal values the earlier
    comes first; an objective in which all are equal tells nothing. What is infinite counts as the largest number there.
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
    """How many are better than each: those of earlier fronts, and of the same front those less crowded."""
    front = front_numbers(points)
    distance = [0.0] * len(points)
    for number in set(front):
        members = [i for i, own in enumerate(front) if own == number]
        for i, apart in zip(members, crowding_distance([points[i] for i in members]), strict=True):
            distance[i] = apart
    keys = [(number, -apart) for number, apart in zip(front, distance, strict=True)]
    places: dict[tuple[int, float], int] = {}
    for place, key in enumerate(sorted(keys)):
        places.setdefault(key, place)
    return [places[key] for key in keys]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Which points nobody dominates, equal ones included, in their order: front 0."""
    return [int(i) for i in np.flatnonzero(~_dominance(points).any(axis=0))]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume that the points dominate up to `reference`, which should be worse than all of them.

    Slice by slice along the last objective (While et al. 2006): Σ_i (z_{i+1} - z_i) · the volume, in one objective
    less, of those with z at most z_i. What is not better than the reference in every objective adds nothing.
    """
    within = sorted({tuple(p) for p in points if all(x < r for x, r in zip(p, reference, strict=True))}, key=_last)
    if not within:
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - within[0][0])
    ends = [*(point[-1] for point in within[1:]), reference[-1]]
    slices = [(end - point[-1], i) for i, (point, end) in enumerate(zip(within, ends, strict=True), 1)]
    return float(sum(d * hypervolume([p[:-1] for p in within[:i]], reference[:-1]) for d, i in slices if d > 0))


def _last(point: Point) -> float:
    return point[-1]


def _dominance(points: Sequence[Point]) -> NDArray[np.bool_]:
    """[n, n]: whether point i dominates point j, at [i, j]."""
    x = _array(points)
    no_worse = np.asarray((x[:, None, :] <= x[None, :, :]).all(axis=2))
    return no_worse & ~no_worse.T


def _array(points: Sequence[Point]) -> Floats:
    return np.array(points, dtype=np.float64).reshape(len(points), len(points[0]) if points else 0)
