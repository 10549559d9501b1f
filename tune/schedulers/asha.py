"""Stop trials by asynchronous successive halving (ASHA), or give every trial the whole budget.

A decision is a pure function of the history at the moment when a result arrives.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from metatrain.validation import require, require_positive
from tune.history.trials import History

Decision = Literal["continue", "stop"]


class Scheduler(Protocol):
    """Decide at which budgets a trial is judged and whether it goes on from one to the next."""

    def budgets(self, number: int) -> tuple[int, ...]:
        """Return the rungs of a trial in steps, rising; the last is the whole budget."""

    def decide(self, history: History, number: int) -> Decision:
        """Decide whether a trial goes on, given a history that has its newest result."""


@dataclass(frozen=True)
class FullBudget:
    """Give every trial the whole budget."""

    max_budget: int

    def __post_init__(self) -> None:
        require_positive("search.method", max_budget=self.max_budget)

    def budgets(self, number: int) -> tuple[int, ...]:
        return (self.max_budget,)

    def decide(self, history: History, number: int) -> Decision:
        return "continue"


@dataclass(frozen=True)
class ASHA:
    """Stop trials early by asynchronous successive halving (Li et al. 2020), the variant without late promotion.

    Rungs are at r·η^k below R, and at R: r = min_budget, η = eta, R = max_budget. At a rung with n results of its
    bracket the newest goes on if it is among the best max(1, ⌊n / η⌋): no trial waits for others or is paused. Of equal
    results the earlier is the better. With several objectives the best are the first Pareto fronts (`History.losses`).
    Trial i belongs to bracket i mod `brackets`, and bracket s begins at r·η^s.
    """

    min_budget: int
    max_budget: int
    eta: int = 3
    brackets: int = 1

    def __post_init__(self) -> None:
        require_positive(
            "search.method", min_budget=self.min_budget, max_budget=self.max_budget, brackets=self.brackets
        )
        require(self.eta >= 2, f"search.method.eta: {self.eta} is below 2: set 2 or more, such as 3")
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
        # Of equal losses the earlier is better.
        better = sum(loss <= losses[mine] for loss in losses[:mine])
        better += sum(loss < losses[mine] for loss in losses[mine + 1 :])
        return "continue" if better < max(1, len(losses) // self.eta) else "stop"


def _rungs(least: int, most: int, eta: int) -> tuple[int, ...]:
    rungs = [least]
    while rungs[-1] * eta < most:
        rungs.append(rungs[-1] * eta)
    return (*rungs, most) if rungs[-1] < most else tuple(rungs)
