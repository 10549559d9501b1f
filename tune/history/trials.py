"""Hold the trials of a study and their results, as immutable values with functions that return grown ones.

A history is all that searchers and schedulers know. Results and ends count once, the first time: after an error nobody
knows whether a message arrived, so messages are sent again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from metatrain.validation import require
from tune.history.pareto import pareto_front, rank_points
from tune.space.distributions import Value

Mode = Literal["min", "max"]
Status = Literal["running", "stopped", "completed", "failed", "nan", "unfit"]
"""stopped: by the scheduler. completed: its whole budget. nan: a loss or a result was not a finite number. unfit: its
settings are incompatible with each other. failed: any other error.
"""
FAILED_STATUSES: tuple[Status, ...] = ("failed", "nan", "unfit")


@dataclass(frozen=True)
class Trial:
    """One configuration, its results and its end.

    results: ((budget, value), …), budgets in steps and rising, values finite.
    parent, start: in a population, the trial whose checkpoint it began from and the step of it; else None and 0.
    costs: {objective: latest number} of the objectives beside the metric.
    """

    number: int
    configuration: Mapping[str, Value]
    parent: int | None = None
    start: int = 0
    results: tuple[tuple[int, float], ...] = ()
    status: Status = "running"
    reason: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_failed(self) -> bool:
        """Return whether it ended with a status of `FAILED_STATUSES`."""
        return self.status in FAILED_STATUSES

    @property
    def budget(self) -> int:
        """Return the steps up to its last result, those of its ancestors included."""
        return self.results[-1][0] if self.results else self.start

    def value_at(self, budget: int) -> float | None:
        """Return the value at this budget; None if there is none."""
        return next((value for reached, value in self.results if reached == budget), None)


@dataclass(frozen=True)
class History:
    """All trials by number, and the number of failures in a row at the end.

    Once any trial has a result, statuses nan and unfit do not count as such failures: a space may be full of
    incompatible settings, and they say nothing about the next trial.

    result_order: (trial, budget) of all results in the order in which they arrived. objectives: costs to minimise
    beside the metric.
    """

    mode: Mode = "min"
    trials: tuple[Trial, ...] = ()
    result_order: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    consecutive_failures: int = 0
    objectives: tuple[str, ...] = ()

    def loss(self, value: float) -> float:
        """Return the value to minimise: the value itself, or its negative in mode max."""
        return value if self.mode == "min" else -value

    def losses(self, results: Sequence[tuple[Trial, float]]) -> list[float]:
        """Return the loss of each (trial, value): every comparison of trials uses this.

        With objectives, the rank among the given results by the loss and the costs (`pareto.rank_points`): a number
        that means nothing beside those of other calls.
        """
        if not self.objectives:
            return [self.loss(value) for _, value in results]
        return [float(place) for place in rank_points([self.point(*result) for result in results])]

    def point(self, trial: Trial, value: float) -> tuple[float, ...]:
        """Return (loss, *costs) in the order of `objectives`; an unknown cost is infinite, worse than all others."""
        return (self.loss(value), *(trial.costs.get(name, math.inf) for name in self.objectives))

    @property
    def running(self) -> tuple[Trial, ...]:
        """Return the trials that have not ended."""
        return tuple(trial for trial in self.trials if trial.status == "running")

    @property
    def steps(self) -> int:
        """Return the number of steps computed, as far as results show."""
        return sum(trial.budget - trial.start for trial in self.trials)

    def with_trial(self, trial: Trial) -> "History":
        """Add a trial, whose number must be the next one."""
        require(trial.number == len(self.trials), f"trial {trial.number}: the next is {len(self.trials)}: begin that")
        return replace(self, trials=(*self.trials, trial))

    def accepts(self, number: int, budget: int) -> bool:
        """Return whether a result would count: the trial runs, and has none at this budget or a later one."""
        trial = self.trial(number)
        return trial.status == "running" and budget > trial.budget

    def with_result(
        self, number: int, budget: int, value: float, costs: Mapping[str, float] = MappingProxyType({})
    ) -> "History":
        """Add a result; return the same history if it is repeated or late. A value that is not finite ends its trial; a
        cost that is not finite stays unknown.
        """
        if not self.accepts(number, budget):
            return self
        if not math.isfinite(value):
            return self.with_end(number, "nan", f"{value} at step {budget}")
        trial = self.trial(number)
        known = {name: float(cost) for name, cost in costs.items() if math.isfinite(cost)}
        grown = replace(trial, results=(*trial.results, (budget, float(value))), costs={**trial.costs, **known})
        return replace(
            self._replace_trial(grown), result_order=(*self.result_order, (number, budget)), consecutive_failures=0
        )

    def with_end(self, number: int, status: Status, reason: str = "") -> "History":
        """End a trial; return the same history if it has ended."""
        trial = self.trial(number)
        if trial.status != "running":
            return self
        ended = replace(trial, status=status, reason=reason)
        return replace(self._replace_trial(ended), consecutive_failures=self._count_failures(status))

    def trial(self, number: int) -> Trial:
        """Return a trial by its number. ValueError: there is none."""
        count = len(self.trials)
        require(0 <= number < count, f"trial {number}: there are {count}, from 0 on: name one of them")
        return self.trials[number]

    def best(self) -> Trial | None:
        """Return the best trial of those with the largest budget, the first of equals; None if none has a result.

        With objectives: the trial of the front with the best metric.
        """
        return next(iter(self.front()), None)

    def front(self) -> tuple[Trial, ...]:
        """Return the Pareto front of the trials with the largest budget, the best metric first; without objectives
        those that are equally best. Failed trials are among them only if all have failed.
        """
        results = [trial for trial in self.trials if trial.results]
        seen = [trial for trial in results if not trial.has_failed] or results
        most = max((trial.budget for trial in seen), default=0)
        highest = [trial for trial in seen if trial.budget == most]
        points = [self.point(trial, trial.results[-1][1]) for trial in highest]
        return tuple(highest[i] for i in sorted(pareto_front(points), key=lambda i: points[i]))

    def _count_failures(self, status: Status) -> int:
        """Return the number of failures in a row after one more trial that ended so."""
        if status not in FAILED_STATUSES:
            return 0
        return self.consecutive_failures + (status == "failed" or not self.result_order)

    def _replace_trial(self, trial: Trial) -> "History":
        number = trial.number
        return replace(self, trials=(*self.trials[:number], trial, *self.trials[number + 1 :]))
