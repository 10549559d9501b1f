"""Analyse the history of a search: the ranking, the best so far, rungs, trade-offs, ancestry.

Trials of different budgets are not compared by value: who went further stands first, as in `History.best`. The best
value so far alone, which tells how a search went, is that of any budget.
"""

import math
from typing import NamedTuple

from tune.history.trials import History, Trial
from tune.report.collect import SearchRecord


class Improvement(NamedTuple):
    """A value better than all before, at whichever budget. steps: computed until then, by all trials."""

    steps: int
    seconds: float
    trial: int
    budget: int
    value: float


class Rung(NamedTuple):
    """A budget: how many trials reached it, went on and run there, and their steps since the rung below."""

    budget: int
    trials: int
    steps: int
    went_on: int
    running: int
    best: float


class CostRow(NamedTuple):
    """A trial with its value, its costs in the order of the objectives, and whether no other dominates it."""

    trial: Trial
    value: float
    costs: tuple[float, ...]
    on_front: bool


def rank_trials(history: History) -> list[Trial]:
    """Rank the trials: the furthest first; of those that went equally far the best; then those without a result."""
    seen = [trial for trial in history.trials if trial.results]
    rest = [trial for trial in history.trials if not trial.results]
    seen.sort(key=lambda trial: (-trial.budget, history.loss(trial.results[-1][1]), trial.number))
    return [*seen, *rest]


def list_improvements(record: SearchRecord) -> tuple[list[Improvement], int]:
    """Return every change of the best value so far, in order, and the steps computed in all."""
    history = record.history
    found: list[Improvement] = []
    reached = {trial.number: trial.start for trial in history.trials}
    steps = 0
    for (number, budget), seconds in zip(history.result_order, record.seconds, strict=True):
        value = history.trials[number].value_at(budget)
        steps += budget - reached[number]
        reached[number] = budget
        if value is None:
            continue
        if not found or history.loss(value) < history.loss(found[-1].value):
            found.append(Improvement(steps, seconds, number, budget, value))
    return found, steps


def summarize_rungs(history: History) -> list[Rung]:
    """Return all budgets that a trial has a result at, from the least on."""
    found = []
    for budget in sorted({budget for trial in history.trials for budget, _ in trial.results}):
        here = [trial for trial in history.trials if trial.value_at(budget) is not None]
        steps = 0
        for trial in here:
            below = [lower for lower, _ in trial.results if lower < budget]
            steps += budget - (below[-1] if below else trial.start)
        values = [value for trial in here if (value := trial.value_at(budget)) is not None]
        found.append(
            Rung(
                budget,
                trials=len(here),
                steps=steps,
                went_on=sum(trial.budget > budget for trial in here),
                running=sum(trial.budget == budget and trial.status == "running" for trial in here),
                best=min(values, key=history.loss),
            )
        )
    return found


def compare_costs(history: History) -> list[CostRow]:
    """Return the trials that went furthest and whose costs are known, the best first; `History.front` is marked."""
    front = {trial.number for trial in history.front()}
    most = max((trial.budget for trial in history.trials if trial.results), default=0)
    found = []
    for trial in history.trials:
        costs = tuple(float(trial.costs.get(name, math.nan)) for name in history.objectives)
        value = trial.value_at(most)
        if value is not None and all(map(math.isfinite, costs)):
            found.append(CostRow(trial, value, costs, trial.number in front))
    return sorted(found, key=lambda row: (history.loss(row.value), row.costs, row.trial.number))


def ancestry(history: History, number: int) -> list[Trial]:
    """Return a trial and those whose checkpoints it goes back to, the oldest first."""
    chain = [history.trials[number]]
    while (parent := chain[0].parent) is not None and parent < chain[0].number:
        chain.insert(0, history.trials[parent])
    return chain
