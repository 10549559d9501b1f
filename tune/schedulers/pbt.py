"""Copy good members over bad ones: population-based training (Jaderberg et al. 2017).

This module only decides. The study ends the copier and begins the copy in one line of its journal; the trial's process
then begins from the checkpoint of the copied member.
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
    """A trial to begin from the checkpoint that `parent` had after `start` steps."""

    parent: int
    start: int
    configuration: Configuration


@dataclass(frozen=True)
class PBT:
    """Let the worst members copy the best every `interval` steps, and perturb what they copied.

    Among the n members with a result at its budget, a trial of the worst ⌊n · quantile⌋ (at least one) copies one of as
    many best, drawn uniformly. Each parameter of `explored` is then drawn anew from the space with probability
    `resample`, or else multiplied by `factor` or 1 / `factor`. Other parameters keep their values, as those that shape
    a model must: the checkpoint would not fit.

    No member waits, and no more members need to train at once than there is room for: Jaderberg et al. compare latest
    results and copy latest parameters; here both are those at the copier's own budget.

    As a scheduler it stops no trial by itself: a copier ends in favour of its copy, a trial of its own, whose budgets
    are those above the step that it began from.
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
        require(self.members >= 2, "search.method.members: 1 has no other member to copy: set 2 or more, such as 8")
        share = f"search.method.quantile: {self.quantile:g} must be above 0 and at most 0.5: set 0.25"
        require(0 < self.quantile <= 0.5, share)
        require(0 <= self.resample <= 1, f"search.method.resample: {self.resample:g} is no probability: set 0 to 1")
        require(self.factor > 1, f"search.method.factor: {self.factor:g} must be above 1: set 1.2")

    def budgets(self, number: int) -> tuple[int, ...]:
        """Return the steps at which members are compared; the last is the whole budget."""
        return (*range(self.interval, self.max_budget, self.interval), self.max_budget)

    def decide(self, history: History, number: int) -> Decision:
        """Let the member go on; whether it copies another instead is decided by `choose_copy`."""
        return "continue"

    def all_started(self, history: History) -> bool:
        """Return whether all members have begun; copies take the places of earlier members."""
        return sum(trial.parent is None for trial in history.trials) >= self.members

    def check_space(self, space: Space) -> None:
        """Raise ValueError if a parameter of `explored` is not in the space or fits no checkpoint, or if members are
        never compared.
        """
        names = [parameter.name for parameter in space.parameters]
        above = (
            f"search.method.interval: {self.interval} steps are the whole budget, so no member ever copies: lower it"
        )
        require(self.interval < self.max_budget, above)
        for name in self.explored:
            there = ", ".join(names)
            require(name in names, f"search.method.explored: no '{name}' in the space: choose among {there}")
            fits = "a checkpoint of other settings would not fit it: remove it from what is explored"
            require(is_explorable(name), f"search.method.explored: '{name}': {fits}")

    def choose_copy(self, space: Space, history: History, number: int, seed: int) -> Copy | None:
        """Return the copy that replaces a trial after its newest result; None: the trial goes on."""
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
        # The random address is the number of the trial to come: each is begun once.
        which, *rest = draw_uniforms(seed, "exploit", len(history.trials), 1 + 3 * len(space.parameters))
        parent = ranked[:count][int(which * count)]
        return Copy(parent.number, budget, self._perturb(space, parent.configuration, rest))

    def _perturb(self, space: Space, configuration: Mapping[str, Value], quantiles: list[float]) -> Configuration:
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
    """Return whether a member may change this setting at a checkpoint: not if it shapes parameters or optimisers."""
    section, _, setting = name.partition(".")
    return section not in ("model", "tasks") and bool(setting) and not name.endswith(("optimizer", "algorithm.name"))


def live_members(history: History) -> list[Trial]:
    """Return the members that have a result and have neither failed nor been replaced, by number."""
    return [trial for trial in history.trials if trial.results and trial.status in ("running", "completed")]
