"""BOHB: successive halving that is told what to try by a model (Falkner et al. 2018)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from metatrain.validation import require, require_positive
from tasks.random import stream, uniforms
from tune.history.trials import History
from tune.searchers.kde import Density, fitted, quantiles
from tune.searchers.observations import awaited, observations
from tune.space.distributions import Value
from tune.space.search_space import Configuration, Space, draws

LEAST_GOOD = 3
Seen = tuple[Mapping[str, Value], float]
"""A configuration and its loss."""
Weighed = tuple[Mapping[str, Value], float]
"""A configuration, and what it weighs beside one of the search's own: 0 to 1."""


class Advice(NamedTuple):
    """What a search knows from elsewhere: configurations that were good there, and those that were bad."""

    good: Sequence[Weighed]
    bad: Sequence[Weighed]


NOTHING = Advice((), ())


@dataclass(frozen=True)
class BOHB:
    """A model for each rung, of the results at its budget; the highest rung that has `least` of them suggests, and
    before there is one the lowest, once it has `startup`.

    The best share `good` of the observations has the density l, the others g; of `candidates` draws from l the one is
    suggested that has the largest l(x) / g(x), which grows with the expected improvement (Bergstra et al. 2011, section
    4), times a factor that keeps it apart from what still runs (González et al. 2016, local penalisation): as one bad
    observation more, that would hardly move the peak. What failed is bad in every rung where it has no result. The
    first trials, and a share `random` of the later ones, are draws from the prior, however sure the model is.

    Falkner et al. ask a rung for d + 2 results only; with so few the highest soon suggests what it has already.
    """

    random: float = 0.1
    candidates: int = 64
    least: int = 30
    startup: int = 10
    good: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.random <= 1, f"search.method.random: {self.random:g} is no share: set 0 to 1")
        require(0 < self.good <= 0.5, f"search.method.good: {self.good:g} is not above 0 and at most 0.5: set 0.1")
        require_positive("search.method", candidates=self.candidates, least=self.least, startup=self.startup)

    def suggest(self, space: Space, history: History, number: int, seed: int) -> Configuration:
        return self.advised(space, history, number, seed, NOTHING)

    def advised(self, space: Space, history: History, number: int, seed: int, advice: Advice) -> Configuration:
        """A suggestion of a model that knows more than the history: from the first trial on, if there is advice."""
        at_random = self.at_random(number, seed)
        budget = None if at_random else self.rung(history)
        if at_random or (budget is None and not advice.good):
            return space.sample(seed, number)
        good, bad = ([], []) if budget is None else self._split(observations(history, budget))
        running = awaited(history, budget)
        densities = _mixed(space, good, advice.good), _mixed(space, [*bad, *running], advice.bad)
        return self._most_promising(space, *densities, running, (seed, number))

    def at_random(self, number: int, seed: int) -> bool:
        """Whether a trial is one of the share that no model suggests."""
        (u,) = draws(seed, "random-share", number, 1)
        return u < self.random

    def rung(self, history: History) -> int | None:
        """The highest with enough results that did not fail, else the lowest; None before that has enough to begin."""
        counts: dict[int, int] = {}
        for _, budget in history.arrivals:
            counts[budget] = counts.get(budget, 0) + 1
        enough = [budget for budget, count in counts.items() if count >= self.least]
        if enough:
            return max(enough)
        return min((budget for budget in counts if counts[min(counts)] >= self.startup), default=None)

    def _split(self, seen: Sequence[Seen]) -> tuple[list[Mapping[str, Value]], list[Mapping[str, Value]]]:
        ranked = sorted(seen, key=lambda one: one[1])
        finite = sum(math.isfinite(loss) for _, loss in ranked)
        count = min(max(math.ceil(self.good * len(ranked)), LEAST_GOOD), max(finite // 2, 1))
        configurations = [configuration for configuration, _ in ranked]
        return configurations[:count], configurations[count:]

    def _most_promising(
        self,
        space: Space,
        good: Density,
        bad: Density,
        running: Sequence[Mapping[str, Value]],
        address: tuple[int, int],
    ) -> Configuration:
        """The argmax among draws from `good`. Densities are of the draws as they are in the space, integers rounded."""
        seed, number = address
        width = 1 + 2 * len(space.parameters)
        drawn = uniforms(seed, stream("search", "candidates"), [number], self.candidates * width)
        candidates = [space.completed({}, row) for row in good.draw(drawn.reshape(-1, width)).tolist()]
        x = quantiles(space, candidates)
        return candidates[int(np.argmax(good.log(x) - bad.log(x) + good.log_apart(x, quantiles(space, running))))]


def _mixed(space: Space, own: Sequence[Mapping[str, Value]], others: Sequence[Weighed]) -> Density:
    """The density of a search's own configurations and of those of others, by their weights."""
    configurations = [*own, *(configuration for configuration, _ in others)]
    return fitted(space, configurations, [*(1.0 for _ in own), *(weight for _, weight in others)])
