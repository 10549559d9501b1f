"""What was tried and what was seen: frozen, and grown by functions that return a new one.

A history is all that searchers and schedules know. Results and ends count once, the first time, as tasks do in the
ledger: after an error nobody knows whether a message arrived, so messages are sent again.
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
"""stopped: by its schedule. completed: its whole budget. nan: a loss or a result was no finite number. unfit: its
settings do not go together. failed: anything else that went wrong.
"""
FAILED_STATUSES: tuple[Status, ...] = ("failed", "nan", "unfit")


@dataclass(frozen=True)
class Trial:
    """One configuration and what came of it.

    results: ((budget, value), …), budgets in steps and rising, values finite.
    parent, start: whose checkpoint it began from, and at which budget, in a population; else None and 0.
    costs: {objective: the newest number}, what was told of those weighed beside the metric.
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
        """Whether it came to grief."""
        return self.status in FAILED_STATUSES

    @property
    def budget(self) -> int:
        """Steps up to its last result, with those of its ancestors."""
        return self.results[-1][0] if self.results else self.start

    def value_at(self, budget: int) -> float | None:
        """Its value at this budget; None where it has none."""
        return next((value for reached, value in self.results if reached == budget), None)


@dataclass(frozen=True)
class History:
    """All trials by number, and how many have failed since one last did not, in the order in which they ended.

    Once anything has a result, those that are nan or unfit are no such failures: a space may be full of them, and they
    say nothing of the next trial.

    `arrivals` are the (trial, budget) of all results in the order in which they came. `objectives` are costs, to be
    small, that are weighed beside the metric.
    """

    mode: Mode = "min"
    trials: tuple[Trial, ...] = ()
    result_order: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    consecutive_failures: int = 0
    objectives: tuple[str, ...] = ()

    def loss(self, value: float) -> float:
        """What is to be small: the value, or its negative where it is to be large."""
        return value if self.mode == "min" else -value

    def losses(self, results: Sequence[tuple[Trial, float]]) -> list[float]:
        """What is to be small, of each of these (trial, value): all that compares trials compares by this.

        The loss of the value; with objectives, where the trial stands among these by the loss and its costs: how many
        are better (`objectives.ranked`), a number that means nothing beside those of other calls.
        """
        if not self.objectives:
            return [self.loss(value) for _, value in results]
        return [float(place) for place in rank_points([self.point(*result) for result in results])]

    def point(self, trial: Trial, value: float) -> tuple[float, ...]:
        """(loss, *costs), in the order of `objectives`; a cost that is not known is infinite, worse than all others."""
        return (self.loss(value), *(trial.costs.get(name, math.inf) for name in self.objectives))

    @property
    def running(self) -> tuple[Trial, ...]:
        """Those that have not ended."""
        return tuple(trial for trial in self.trials if trial.status == "running")

    @property
    def steps(self) -> int:
        """Steps computed, as far as results tell."""
        return sum(trial.budget - trial.start for trial in self.trials)

    def with_trial(self, trial: Trial) -> "History":
        """With one more trial, whose number is the next."""
        require(trial.number == len(self.trials), f"trial {trial.number}: the next is {len(self.trials)}: begin that")
        return replace(self, trials=(*self.trials, trial))

    def accepts(self, number: int, budget: int) -> bool:
        """Whether a result would count: the trial runs, and has none of this budget or a later one."""
        trial = self.trial(number)
        return trial.status == "running" and budget > trial.budget

    def with_result(
        self, number: int, budget: int, value: float, costs: Mapping[str, float] = MappingProxyType({})
    ) -> "History":
        """With a result; unchanged where it comes again, or too late. One that is no finite number ends its trial; a
        cost that is none is not known.
        """
        if not self.accepts(number, budget):
            return self
        if not math.isfinite(value):
            return self.with_end(number, "nan", f"{value} at step {budget}")
        trial = self.trial(number)
        known = {name: float(cost) for name, cost in costs.items() if math.isfinite(cost)}
        grown = replace(trial, results=(*trial.results, (budget, float(value))), costs={**trial.costs, **known})
        return replace(self._with(grown), result_order=(*self.result_order, (number, budget)), consecutive_failures=0)

    def with_end(self, number: int, status: Status, reason: str = "") -> "History":
        """With a trial's end; unchanged where it has ended."""
        trial = self.trial(number)
        if trial.status != "running":
            return self
        ended = replace(trial, status=status, reason=reason)
        return replace(self._with(ended), consecutive_failures=self._failures(status))

    def trial(self, number: int) -> Trial:
        """By its number. ValueError: there is none."""
        count = len(self.trials)
        require(0 <= number < count, f"trial {number}: there are {count}, from 0 on: name one of them")
        return self.trials[number]

    def best(self) -> Trial | None:
        """The best of those with the largest budget; of equal ones the first. None: nobody has a result yet.

        With objectives, of the front the one with the best metric.
        """
        return next(iter(self.front()), None)

    def front(self) -> tuple[Trial, ...]:
        """Those with the largest budget that none of them dominates, the best metric first, whatever they cost; without
        objectives those that are equally best. Who broke later is among them only where everybody did.
        """
        results = [trial for trial in self.trials if trial.results]
        seen = [trial for trial in results if not trial.has_failed] or results
        most = max((trial.budget for trial in seen), default=0)
        highest = [trial for trial in seen if trial.budget == most]
        points = [self.point(trial, trial.results[-1][1]) for trial in highest]
        return tuple(highest[i] for i in sorted(pareto_front(points), key=lambda i: points[i]))

    def _failures(self, status: Status) -> int:
        """In a row, with one more trial that ended so."""
        if status not in FAILED_STATUSES:
            return 0
        return self.consecutive_failures + (status == "failed" or not self.result_order)

    def _with(self, trial: Trial) -> "History":
        number = trial.number
        return replace(self, trials=(*self.trials[:number], trial, *self.trials[number + 1 :]))
