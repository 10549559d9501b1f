"""Population-based training: who copies whom, and with which settings it goes on (Jaderberg et al. 2017).

Decisions only. The search ends the copier and begins the copy, in one line of its journal; whoever runs the trials
begins the copy from the checkpoint of the copied one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from metatrain.validation import require, require_positive
from tune.history.trials import History, Trial
from tune.schedulers.asha import Decision
from tune.space.distributions import Value
from tune.space.search_space import Configuration, Space, draw_uniforms


class Copy(NamedTuple):
    """Begin a trial from the checkpoint that `parent` had after `start` steps."""

    parent: int
    start: int
    configuration: Configuration


@dataclass(frozen=True)
class PBT:
    """Every `interval` steps the worst copy the best and perturb what they copied.

    Among the n members that have a result at its budget, a trial of the worst ⌊n · quantile⌋ (at least one) copies
    one of as many best, drawn uniformly. Each parameter of `explored` is then drawn anew from the prior with the
    probability `resample`, or else multiplied by `factor` or by 1 / `factor`. What is not explored stays, as what
    shapes the parameters (a model's width) must: the checkpoint would not fit.

    Nobody waits, and no more members need train side by side than there is room for: Jaderberg et al. compare latest
    results and copy latest parameters; here both are those of the copier's own budget, whoever came there when.

    It is a schedule too, which stops nobody: a copier ends for its copy, a trial of its own, whose budgets are those
    above the steps that it began from.
    """

    explored: tuple[str, ...]
    interval: int
    max_budget: int
    members: int = 8
    quantile: float = 0.25
    resample: float = 0.25
    factor: float = 1.2

    def __post_init__(self) -> None:
        require_positive("search.method", interval=self.interval, max_budget=self.max_budget, members=self.members)
        require(len(self.explored) > 0, "search.method.explored: is empty: name parameters, such as outer.lr")
        require(self.members >= 2, "search.method.members: 1 has nobody to copy: set 2 or more, such as 8")
        share = f"search.method.quantile: {self.quantile:g} must be above 0 and at most 0.5: set 0.25"
        require(0 < self.quantile <= 0.5, share)
        require(0 <= self.resample <= 1, f"search.method.resample: {self.resample:g} is no probability: set 0 to 1")
        require(self.factor > 1, f"search.method.factor: {self.factor:g} must be above 1: set 1.2")

    def budgets(self, number: int) -> tuple[int, ...]:
        """When members are compared; the last is the whole budget."""
        return (*range(self.interval, self.max_budget, self.interval), self.max_budget)

    def decide(self, history: History, number: int) -> Decision:
        """A member goes on, unless it copies another: see `exploit`."""
        return "continue"

    def all_started(self, history: History) -> bool:
        """Whether all members have begun; those that copy others are in the places of earlier ones."""
        return sum(trial.parent is None for trial in history.trials) >= self.members

    def check_space(self, space: Space) -> None:
        """ValueError: what is explored is not in the space, or fits no checkpoint; or nobody is ever compared."""
        names = [parameter.name for parameter in space.parameters]
        above = f"search.method.interval: {self.interval} steps are the whole budget, and nobody copies: lower it"
        require(self.interval < self.max_budget, above)
        for name in self.explored:
            there = ", ".join(names)
            require(name in names, f"search.method.explored: no '{name}' in the space: choose among {there}")
            fits = "a checkpoint of other settings would not fit it: leave it out of what is explored"
            require(is_explorable(name), f"search.method.explored: '{name}': {fits}")

    def choose_copy(self, space: Space, history: History, number: int, seed: int) -> Copy | None:
        """What a trial does after its newest result: copy, or go on as it is (None)."""
        trial = history.trial(number)
        budget = trial.budget
        results = [
            (member, value) for member in live_members(history) if (value := member.value_at(budget)) is not None
        ]
        losses = history.losses(results)
        ranked = [results[i][0] for i in sorted(range(len(results)), key=lambda i: losses[i])]
        count = max(1, int(len(ranked) * self.quantile))
        if budget >= self.max_budget or len(ranked) < 2 or trial not in ranked[-count:]:
            return None
        # The address is that of the trial to come, of which there is one only.
        which, *rest = draw_uniforms(seed, "exploit", len(history.trials), 1 + 3 * len(space.parameters))
        parent = ranked[:count][int(which * count)]
        return Copy(parent.number, budget, self._explored(space, parent.configuration, rest))

    def _explored(self, space: Space, configuration: Mapping[str, Value], quantiles: list[float]) -> Configuration:
        changed: Configuration = dict(configuration)
        for i, parameter in enumerate(space.parameters):
            anew, u, up = quantiles[3 * i : 3 * i + 3]
            if parameter.name in self.explored and parameter.name in changed:
                factor = self.factor if up < 0.5 else 1 / self.factor
                distribution, value = parameter.distribution, changed[parameter.name]
                changed[parameter.name] = (
                    distribution.value_at(u) if anew < self.resample else distribution.perturb(value, factor)
                )
        return space.complete(changed, quantiles[1::3])


def is_explorable(name: str) -> bool:
    """Whether a member may go on from a checkpoint with another value: not of what shapes parameters or optimisers."""
    section, _, setting = name.partition(".")
    return section not in ("model", "tasks") and bool(setting) and not name.endswith(("optimizer", "algorithm.name"))


def live_members(history: History) -> list[Trial]:
    """The members that have a result and have neither failed nor been replaced, in order of number."""
    return [trial for trial in history.trials if trial.results and trial.status in ("running", "completed")]
