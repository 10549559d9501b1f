"""Compute distances between embedded tasks and between sources of tasks, with intervals, and a map of the tasks.

    d(a, b) = 1 − cos(F_a / (F_a + F_b), F_b / (F_a + F_b))      element by element (Achille et al. 2019)

It is symmetric, in [0, 1], and 0 for embeddings that are equal but for a factor. An interval is a percentile
bootstrap: the tasks of each source are drawn again, with replacement.
"""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Key = TypeVar("Key")

RESAMPLES, _SEED = 2000, 17
"""Resamples of the tasks, and the seed that fixes them: what is computed again is the same."""
_ENDS = (2.5, 97.5)


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval, nan where too few tasks tell it."""

    value: float
    low: float
    high: float


class SourceDistances(NamedTuple):
    """Distances of sources by name.

    within: the mean over pairs of different tasks of a source. between: over pairs of a task of each of two sources.
    excess: `between` minus the mean of both `within`, which is 0 on average for one source twice.
    """

    within: Mapping[str, Interval]
    between: Mapping[tuple[str, str], Interval]
    excess: Mapping[tuple[str, str], Interval]


def task_distances(embeddings: Reals, others: Reals | None = None) -> Reals:
    """Return d of all pairs [T, T] of embeddings [T, M] ≥ 0, or to `others` [U, M]: [T, U].

    A filter that has no information in either task counts nothing. Where a whole embedding is zero, d is 1 to
    another one and 0 to zero.
    """
    rows = embeddings if others is None else others
    found = np.stack([_distances_to(one, rows) for one in embeddings])
    if others is None:
        found = (found + found.T) / 2
        np.fill_diagonal(found, 0.0)
    return found


def _distances_to(one: Reals, rows: Reals) -> Reals:
    total = one + rows
    safe = np.where(total > 0, total, 1.0)
    ours, theirs = one / safe, rows / safe
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = (ours * theirs).sum(1) / np.where(norms > 0, norms, 1.0)
    both_zero = ~(total > 0).any(1)
    clipped: Reals = np.clip(1 - np.where(both_zero, 1.0, cosine), 0.0, 1.0)
    return clipped


def trivial_distances(embeddings: Reals) -> Reals:
    """Return d [T] of embeddings [T, M] from the trivial one, which all filters inform equally.

    That is the embedding of a task that says nothing of the weights: its posterior is the prior, of one precision for
    all (Achille et al. 2019). Its size, of no meaning where there is no prior, is the mean of all embeddings.
    """
    trivial = np.full((1, embeddings.shape[1]), embeddings.mean())
    return task_distances(embeddings, trivial)[:, 0]


def source_distances(distances: Reals, sources: Mapping[str, Reals | Any]) -> SourceDistances:
    """Return the distances of sources, of those of tasks [T, T]; sources: the places of the tasks of each."""
    counts = _resampled({name: len(places) for name, places in sources.items()})
    within = {
        name: _mean_of_pairs(distances[np.ix_(places, places)], counts[name], None) for name, places in sources.items()
    }
    pairs = list(combinations(sources, 2))
    between = {
        (a, b): _mean_of_pairs(distances[np.ix_(sources[a], sources[b])], counts[a], counts[b]) for a, b in pairs
    }
    excess = {(a, b): between[a, b] - (within[a] + within[b]) / 2 for a, b in pairs}
    return SourceDistances(_intervals(within), _intervals(between), _intervals(excess))


def _intervals(means: Mapping[Key, Reals]) -> dict[Key, Interval]:
    return {key: _interval(values) for key, values in means.items()}


def mean_intervals(values: Reals, sources: Mapping[str, Any]) -> dict[str, Interval]:
    """Return the mean of values [T] over the tasks of each source."""
    counts = _resampled({name: len(places) for name, places in sources.items()})
    return {name: _interval(counts[name] @ values[places] / len(places)) for name, places in sources.items()}


def _resampled(sizes: Mapping[str, int]) -> dict[str, Reals]:
    """Return how often each task of a source is drawn [1 + RESAMPLES, n], first each once."""
    generator = np.random.default_rng(_SEED)
    found = {}
    for name, n in sizes.items():
        drawn = generator.multinomial(n, np.full(n, 1 / n), RESAMPLES)
        found[name] = np.concatenate([np.ones((1, n)), drawn])
    return found


def _mean_of_pairs(distances: Reals, ours: Reals, theirs: Reals | None) -> Reals:
    """Return the mean over pairs for each row of counts; theirs: None for pairs of different tasks of one source."""
    if theirs is not None:
        means: Reals = ((ours @ distances) * theirs).sum(1) / (ours.sum(1) * theirs.sum(1))
        return means
    # A task that is drawn twice is no pair: its distance to itself would pull the mean down.
    pairs = ours.sum(1) ** 2 - (ours**2).sum(1)
    sums = ((ours @ distances) * ours).sum(1)
    one: Reals = np.divide(sums, pairs, out=np.full(len(ours), math.nan), where=pairs > 0)
    return one


def _interval(values: Reals) -> Interval:
    """Return the first value, and the percentiles of those after it."""
    known = values[1:][np.isfinite(values[1:])]
    if len(known) < RESAMPLES // 2:
        return Interval(float(values[0]), math.nan, math.nan)
    low, high = np.percentile(known, _ENDS)
    return Interval(float(values[0]), float(low), float(high))


def classical_scaling(distances: Reals, dimensions: int = 2) -> tuple[Reals, float]:
    """Return points [T, dimensions] whose distances are about those given [T, T], and the share of them that they show.

    B = −½ J D² J, J = I − 11ᵀ/T; the points are v_k √λ_k of the largest eigenvalues λ_k of B (Torgerson 1952), and the
    share is Σ_k λ_k over the sum of all positive eigenvalues. Each axis has its largest number positive.
    """
    squares = distances**2
    means = squares.mean(0)
    b = -0.5 * (squares - means - means[:, None] + means.mean())
    values, vectors = np.linalg.eigh(b)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    points = np.zeros((len(distances), dimensions))
    points[:, : len(values)] = (vectors * np.sqrt(values))[:, :dimensions]
    largest = np.take_along_axis(points, np.abs(points).argmax(0)[None], 0)
    total = values.sum()
    return points * np.where(largest < 0, -1, 1), float(values[:dimensions].sum() / total) if total > 0 else 1.0
