"""Compare learners that were scored on the same tasks: paired differences, corrected for the number of comparisons.

Scores are [n, R]: task t, learner r. A difference of two learners is that of their scores on each task, from which the
hardness of the task cancels. Three statements, each with its own error:

- one pair: mean ± t s/√n of its n differences (Student), or the jackknife over classes of `intervals`;
- all pairs at once: the same with a critical value c for t, the 95 % quantile of the largest |t| of any pair when the
  sign of each task's centred scores is drawn anew (max-t by sign flips, after Westfall & Young 1993; the wild bootstrap
  of Wu 1986 with Rademacher weights);
- p-values corrected by Holm (1979): the chance of calling any two equal learners different is at most 5 %.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch

from metatrain.evaluation.intervals import over_classes, student_t

LEVEL = 0.05
"""The chance of at least one wrong statement that two equal learners differ."""
FLIPS, _SEED = 4000, 17
"""Sign flips of max-t, and the seed that fixes them: a comparison that is made again says the same."""

Array = np.ndarray[Any, Any]


class Difference(NamedTuple):
    """The score of one learner less that of another: mean over tasks, and half the widths of its 95 % intervals.

    ci95, ci95_classes: of this pair alone, over tasks and over classes (None: too few classes to tell). simultaneous:
    over tasks, for all pairs at once. p, p_holm: of no difference, over tasks; p_classes, p_classes_holm: over classes.
    """

    first: int
    second: int
    value: float
    ci95: float
    simultaneous: float
    p: float
    p_holm: float
    ci95_classes: float | None = None
    p_classes: float | None = None
    p_classes_holm: float | None = None

    @property
    def apart(self) -> bool:
        """Return whether the two differ on tasks of these classes, corrected by Holm."""
        return self.p_holm <= LEVEL


def paired_differences(
    scores: Array,
    pairs: Sequence[tuple[int, int]] | None = None,
    classes: Array | None = None,
    sources: Sequence[str] = (),
) -> list[Difference]:
    """Return the differences of `pairs` of learners (all by default), with intervals and corrected p-values.

    scores: [n, R] of the same n tasks. classes: the numbers of each task's classes [n, N]. sources: of each task, of a
    mixture. ValueError: fewer than two tasks.
    """
    n, learners = scores.shape
    if n < 2:
        raise ValueError(f"{n} task has no interval: set evaluation.tasks to 2 or more")
    pairs = list(combinations(range(learners), 2)) if pairs is None else list(pairs)
    critical = max_t_critical(scores, pairs)
    found = []
    for first, second in pairs:
        each = scores[:, first] - scores[:, second]
        value, error = float(each.mean()), float(each.std(ddof=1)) / math.sqrt(n)
        half, p = student_t(n - 1) * error, _p_value(value, error, n - 1)
        over, p_classes = _over_classes(each, classes, sources)
        found.append(Difference(first, second, value, half, critical * error, p, math.nan, over, p_classes))
    corrected = holm([one.p for one in found])
    told = [one.p_classes for one in found if one.p_classes is not None]
    over_classes = iter(holm(told))
    return [
        one._replace(p_holm=p, p_classes_holm=None if one.p_classes is None else next(over_classes))
        for one, p in zip(found, corrected, strict=True)
    ]


def _over_classes(each: Array, classes: Array | None, sources: Sequence[str]) -> tuple[float | None, float | None]:
    """Return half the interval over classes of the mean of `each` [n], and the p-value of no difference."""
    if classes is None:
        return None, None
    found = over_classes(torch.from_numpy(np.ascontiguousarray(each)), classes, sources)
    if found.variance is None:
        return None, None
    return found.ci95, _p_value(float(each.mean()), math.sqrt(found.variance), int(found.degrees))


def _p_value(value: float, error: float, degrees: int) -> float:
    """Return P(|T| ≥ |value| / error); two scores that never differ are no different."""
    if not math.isfinite(value / error if error else value):
        return 1.0  # scores that are not finite say nothing
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return student_tail(abs(value) / error, degrees)


def max_t_critical(scores: Array, pairs: Sequence[tuple[int, int]]) -> float:
    """Return c with P(max over pairs of |mean / (s/√n)| ≤ c) = 0.95 where all learners are equal; at least Student's t.

    Under a flip of signs the sum of squares of a pair stays, so a flip costs one product [FLIPS, n] [n, R].
    """
    n = len(scores)
    usual = student_t(n - 1)
    if len(pairs) < 2:
        return usual
    centred = scores - scores.mean(0)
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    squares = ((centred[:, first] - centred[:, second]) ** 2).sum(0)
    moving = squares > 0
    if not moving.any():
        return usual
    signs = np.random.default_rng(_SEED).integers(0, 2, (FLIPS, n), dtype=np.int8) * 2.0 - 1
    sums = signs @ centred / n
    means = (sums[:, first] - sums[:, second])[:, moving]
    # n flips of one sign leave no variance: t is then beyond any quantile.
    variance = np.maximum((squares[moving] - n * means**2) / (n - 1), 1e-300)
    largest = np.abs(means / np.sqrt(variance / n)).max(1)
    return max(usual, float(np.quantile(largest, 1 - LEVEL, method="higher")))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's corrected p-values: of the m sorted ones, p̃(i) = max over j ≤ i of min(1, (m - j + 1) p(j))."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def indistinct_groups(learners: int, apart: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the largest groups of learners of which no two are apart, each sorted (insert and absorb, Piepho 2004).

    A learner may be in several groups: that a and b, and b and c, cannot be told apart does not join a and c.
    """
    groups = [frozenset(range(learners))]
    for first, second in apart:
        split = {
            part
            for group in groups
            for part in ((group - {first}, group - {second}) if {first, second} <= group else (group,))
        }
        groups = [group for group in split if not any(group < other for other in split)]
    return sorted(sorted(group) for group in groups)


def student_tail(t: float, degrees: int) -> float:
    """Return P(|T| ≥ t) of Student's distribution: the incomplete beta function I_x(ν/2, 1/2) at x = ν / (ν + t²).

    By the continued fraction of Abramowitz & Stegun (1964, 26.5.8), evaluated as by Lentz, to about 1e-12.
    """
    if t == 0:
        return 1.0
    if not math.isfinite(t):
        return 0.0
    a, b = degrees / 2, 0.5
    x = degrees / (degrees + t * t)
    factor = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return factor * _beta_fraction(a, b, x) / a
    return 1 - factor * _beta_fraction(b, a, 1 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function."""
    tiny = 1e-300
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1), tiny)
    found = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + term * d, tiny)
            c = _away(1 + term / c, tiny)
            found *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return found


def _away(value: float, tiny: float) -> float:
    """Keep a denominator away from zero."""
    return value if abs(value) > tiny else tiny
