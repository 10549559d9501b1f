"""What a model is made from: what is known at a budget, and what is awaited there."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tune.history.trials import History, Trial
from tune.space.distributions import Value


def observations(history: History, budget: int) -> list[tuple[Mapping[str, Value], float]]:
    """(configuration, loss) of those that have a result at a budget; infinity for those that broke before it.

    With several objectives the loss is the place among them, as `History.losses` has it.
    """
    results = [(trial, value) for trial in history.trials if (value := trial.at(budget)) is not None]
    losses = {trial.number: loss for (trial, _), loss in zip(results, history.losses(results), strict=True)}
    broke = (trial.number for trial in history.trials if trial.broke)
    losses |= {number: math.inf for number in broke if number not in losses}
    return [(trial.configuration, losses[trial.number]) for trial in history.trials if trial.number in losses]


def awaited(history: History, budget: int | None) -> list[Mapping[str, Value]]:
    """Configurations that run and have no result at a budget yet; None: all that run."""
    return [trial.configuration for trial in history.running if budget is None or trial.at(budget) is None]


def comparable(history: History) -> list[Trial]:
    """Those that have a result, or have broken, in order of number."""
    return [trial for trial in history.trials if trial.results or trial.broke]


def comparisons(history: History, trials: Sequence[Trial]) -> NDArray[np.float64]:
    """[n, n] over some `comparable` trials: 1 where the row is better than the column, -1 where worse, 0 where equal.

    Two trials are compared at the highest budget at which both have a result, so that a trial is not the better for
    having come so early that it had nobody to be halved against. Who broke is worse than who did not.
    """
    signs = np.zeros((len(trials), len(trials)))
    broken = np.array([trial.broke for trial in trials], dtype=bool)
    for budget in sorted({reached for trial in trials for reached, _ in trial.results}):
        there = [(i, value) for i, trial in enumerate(trials) if (value := trial.at(budget)) is not None]
        losses = np.where(broken, math.inf, math.nan)
        losses[[i for i, _ in there]] = history.losses([(trials[i], value) for i, value in there])
        better = (losses[:, None] < losses[None, :]).astype(float)
        both = ~np.isnan(losses)
        signs = np.where(both[:, None] & both[None, :], better - better.T, signs)
    return signs
