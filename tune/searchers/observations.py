"""Extract from a history what models learn from: losses at one budget, running trials, pairwise comparisons."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tune.history.trials import History, Trial
from tune.space.distributions import Value

Observed = tuple[Mapping[str, Value], float]
"""A configuration, and its loss or its quantile among others: smaller is better."""


def observations(history: History, budget: int) -> list[Observed]:
    """Return (configuration, loss) of the trials with a result at `budget`; infinity for those that failed before it.

    With several objectives the loss is the rank among them, see `History.losses`.
    """
    results = [(trial, value) for trial in history.trials if (value := trial.value_at(budget)) is not None]
    losses = {trial.number: loss for (trial, _), loss in zip(results, history.losses(results), strict=True)}
    failed = (trial.number for trial in history.trials if trial.has_failed)
    losses |= {number: math.inf for number in failed if number not in losses}
    return [(trial.configuration, losses[trial.number]) for trial in history.trials if trial.number in losses]


def to_quantiles(observed: Sequence[Observed]) -> list[Observed]:
    """Replace each loss by the share of the others that are better: 0 for the best, 1 for the worst."""
    places = np.argsort(np.argsort([loss for _, loss in observed], kind="stable")) / max(len(observed) - 1, 1)
    return [(configuration, float(place)) for (configuration, _), place in zip(observed, places, strict=True)]


def pending(history: History, budget: int | None) -> list[Mapping[str, Value]]:
    """Return the configurations that run without a result at `budget` yet; all that run where it is None."""
    return [trial.configuration for trial in history.running if budget is None or trial.value_at(budget) is None]


def trials_with_outcome(history: History) -> list[Trial]:
    """Return the trials that have a result or have failed, by number."""
    return [trial for trial in history.trials if trial.results or trial.has_failed]


def pairwise_signs(history: History, trials: Sequence[Trial]) -> NDArray[np.float64]:
    """Compare trials that have a result or have failed: 1 where the row is better than the column, -1 where it is
    worse, 0 where they are equal, [n, n].

    Two trials are compared at the highest budget at which both have a result, so that a trial gains nothing from having
    come before there were others to be stopped in favour of. A failed trial is worse than any other.
    """
    signs = np.zeros((len(trials), len(trials)))
    failed = np.array([trial.has_failed for trial in trials], dtype=bool)
    for budget in sorted({reached for trial in trials for reached, _ in trial.results}):
        there = [(i, value) for i, trial in enumerate(trials) if (value := trial.value_at(budget)) is not None]
        losses = np.where(failed, math.inf, math.nan)
        losses[[i for i, _ in there]] = history.losses([(trials[i], value) for i, value in there])
        better = (losses[:, None] < losses[None, :]).astype(float)
        both = ~np.isnan(losses)
        signs = np.where(both[:, None] & both[None, :], better - better.T, signs)
    return signs
