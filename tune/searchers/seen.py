"""What a model is made from: what is known at a budget, and what is awaited there."""

import math
from collections.abc import Mapping

from tune.domains import Value
from tune.history import History


def observations(history: History, budget: int) -> list[tuple[Mapping[str, Value], float]]:
    """(configuration, loss) of those that have a result at a budget; infinity for those that broke before it."""
    found = []
    for trial in history.trials:
        value = trial.at(budget)
        if value is not None:
            found.append((trial.configuration, history.loss(value)))
        elif trial.status in ("failed", "nan"):
            found.append((trial.configuration, math.inf))
    return found


def awaited(history: History, budget: int) -> list[Mapping[str, Value]]:
    """Configurations that run and have no result at a budget yet."""
    return [trial.configuration for trial in history.running if trial.at(budget) is None]
