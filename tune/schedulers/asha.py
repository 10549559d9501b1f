"""Who goes on: asynchronous successive halving, and a schedule that lets everybody.

A decision is a pure function of the history at the moment when a result has come.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from metatrain.validation import require, require_positive
from tune.history.trials import History

Decision = Literal["continue", "stop"]


class Scheduler(Protocol):
    """Which budgets are looked at, and whether a trial goes on from one to the next."""

    def budgets(self, number: int) -> tuple[int, ...]:
        """The rungs of a trial in steps, rising; the last is the whole budget."""
        ...

    def decide(self, history: History, number: int) -> Decision:
        """Whether a trial goes on, its newest result being one of the history's."""
        ...


@dataclass(frozen=True)
class FullBudget:
    """Every trial has the whole budget."""

    max_budget: int

    def __post_init__(self) -> None:
        require_positive("search.method", max_budget=self.max_budget)

    def budgets(self, number: int) -> tuple[int, ...]:
        return (self.max_budget,)

    def decide(self, history: History, number: int) -> Decision:
        return "continue"


@dataclass(frozen=True)
class ASHA:
    """Asynchronous successive halving (Li et al. 2020), the variant that stops instead of promoting later.

    Rungs are at r·η^k below R, and at R: r = min_budget, η = eta, R = max_budget. At a rung where n results of its
    bracket are in, the newest of them goes on if it is among the best max(1, ⌊n / η⌋): no trial ever waits for others,
    nor is one kept asleep. Of equal results the earlier is the better. With several objectives the best are the first
    fronts (`History.losses`). Trial i is of bracket i mod `brackets`, and bracket s begins at r·η^s.
    """

    min_budget: int
    max_budget: int
    eta: int = 3
    brackets: int = 1

    def __post_init__(self) -> None:
        require_positive(
            "search.method", min_budget=self.min_budget, max_budget=self.max_budget, brackets=self.brackets
        )
        require(self.eta >= 2, f"search.method.eta: {self.eta} halves nothing: set 2 or more, such as 3")
        above = f"search.method.min_budget: {self.min_budget} is above max_budget, {self.max_budget}: lower it"
        require(self.min_budget <= self.max_budget, above)
        most = len(_rungs(self.min_budget, self.max_budget, self.eta))
        many = f"search.method.brackets: {self.brackets} are more than the {most} rungs: set {most} or fewer"
        require(self.brackets <= most, many)

    def budgets(self, number: int) -> tuple[int, ...]:
        return _rungs(self.min_budget, self.max_budget, self.eta)[number % self.brackets :]

    def decide(self, history: History, number: int) -> Decision:
        budget = history.trial(number).budget
        if budget == self.max_budget:
            return "continue"
        bracket = number % self.brackets
        came = [who for who, reached in history.result_order if reached == budget and who % self.brackets == bracket]
        trials = [history.trials[who] for who in came]
        losses = history.losses([(trial, value) for trial in trials if (value := trial.value_at(budget)) is not None])
        mine = came.index(number)
        # Those before it are better where they are equal, those after it only where they are not.
        better = sum(loss <= losses[mine] for loss in losses[:mine])
        better += sum(loss < losses[mine] for loss in losses[mine + 1 :])
        return "continue" if better < max(1, len(losses) // self.eta) else "stop"


def _rungs(least: int, most: int, eta: int) -> tuple[int, ...]:
    rungs = [least]
    while rungs[-1] * eta < most:
        rungs.append(rungs[-1] * eta)
    return (*rungs, most) if rungs[-1] < most else tuple(rungs)
