"""Simulate one search on one objective, with workers that start a trial as soon as they are free.

A step costs one unit of a worker's time; nothing else has a cost. The trace records the simple regret of the
incumbent, the best of the trials at the highest rung, against the budget spent by all workers.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.search_objectives import Objective
from tune.history.trials import History, Trial
from tune.schedulers.asha import FullBudget, Scheduler
from tune.searchers import Searcher
from tune.searchers.bohb import BOHB
from tune.searchers.random_search import RandomSearch
from tune.space.distributions import Categorical
from tune.space.search_space import Configuration, Space

WORKERS = 4


class SearchAdapter(Protocol):
    """Suggest configurations and optionally observe their results."""

    def suggest(self, history: History, number: int) -> Configuration: ...
    def observe(self, trial: Trial) -> None: ...


@dataclass
class TuneAdapter:
    """Adapt a searcher of `tune/`, which receives the whole history."""

    searcher: Searcher
    space: Space
    seed: int

    def suggest(self, history: History, number: int) -> Configuration:
        return self.searcher.suggest(self.space, history, number, self.seed)

    def observe(self, trial: Trial) -> None: ...


class RayOptuna:
    """Adapt `ray.tune.search.optuna.OptunaSearch`, called as Tune's controller calls it.

    Results of continuing trials are passed to on_trial_result; the last result of a stopped or completed trial is
    passed to on_trial_complete only, whatever its budget.
    """

    def __init__(self, space: Space, seed: int) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        distributions: dict[str, Any] = {}
        for name, distribution in ((parameter.name, parameter.distribution) for parameter in space.parameters):
            if isinstance(distribution, Categorical):
                distributions[name] = optuna.distributions.CategoricalDistribution(distribution.options)
            else:
                distributions[name] = optuna.distributions.FloatDistribution(
                    distribution.value_at(0.0), distribution.value_at(1.0)
                )
        self._search = OptunaSearch(distributions, metric="loss", mode="min", seed=seed)

    def suggest(self, history: History, number: int) -> Configuration:
        return dict(self._search.suggest(str(number)) or {})

    def observe(self, trial: Trial) -> None:
        budget, value = trial.results[-1]
        result: dict[str, Any] = {"loss": value, "training_iteration": budget}
        if trial.status == "running":
            self._search.on_trial_result(str(trial.number), result)
        else:
            self._search.on_trial_complete(str(trial.number), result)


Method = Callable[[Objective, int], tuple[SearchAdapter, Scheduler]]


def full_budget(objective: Objective) -> Scheduler:
    """Return the scheduler that gives every trial the whole budget."""
    return FullBudget(objective.schedule.max_budget)


METHODS: dict[str, Method] = {
    "random": lambda objective, seed: (TuneAdapter(RandomSearch(), objective.space, seed), full_budget(objective)),
    "ASHA": lambda objective, seed: (TuneAdapter(RandomSearch(), objective.space, seed), objective.schedule),
    "Ray's Optuna": lambda objective, seed: (RayOptuna(objective.space, seed), full_budget(objective)),
    "Ray's Optuna, ASHA": lambda objective, seed: (RayOptuna(objective.space, seed), objective.schedule),
    "BOHB": lambda objective, seed: (TuneAdapter(BOHB(), objective.space, seed), objective.schedule),
}


Trace = list[tuple[float, float]]


def race(objective: Objective, method: Method, seed: int, evaluations: float) -> Trace:
    """Return [(budget spent, regret of the incumbent), …] at each change, in whole evaluations, up to `evaluations`."""
    return simulate(objective, method, seed, evaluations)[1]


def simulate(objective: Objective, method: Method, seed: int, evaluations: float) -> tuple[History, Trace]:
    """Run the simulation and return the final history and the trace (see `race`)."""
    adapter, schedule = method(objective, seed)
    history, most = History(), objective.schedule.max_budget
    trace: Trace = []
    best = (0, math.inf)
    # (time of the next result, trial, its rung): ties go to the earlier trial.
    busy: list[tuple[int, int, int]] = []

    def begin(now: int) -> None:
        nonlocal history
        number = len(history.trials)
        history = history.with_trial(Trial(number, adapter.suggest(history, number)))
        heapq.heappush(busy, (now + schedule.budgets(number)[0], number, 0))

    for _ in range(WORKERS):
        begin(0)
    while busy[0][0] * WORKERS <= evaluations * most:
        now, number, rung = heapq.heappop(busy)
        rungs, configuration = schedule.budgets(number), history.trial(number).configuration
        history = history.with_result(
            number, rungs[rung], objective.observed(configuration, rungs[rung], (seed, number))
        )
        if rungs[rung] == rungs[-1]:
            history = history.with_end(number, "completed")
        elif schedule.decide(history, number) == "stop":
            history = history.with_end(number, "stopped")
        adapter.observe(history.trial(number))
        if history.trial(number).status == "running":
            heapq.heappush(busy, (now + rungs[rung + 1] - rungs[rung], number, rung + 1))
        else:
            begin(now)
        # The order of History.best, one result at a time.
        if (-rungs[rung], history.trial(number).results[-1][1]) < best:
            best = (-rungs[rung], history.trial(number).results[-1][1])
            trace.append((now * WORKERS / most, objective.regret(configuration)))
    return history, trace
