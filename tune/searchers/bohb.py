"""Suggest by BOHB: successive halving whose trials a model proposes (Falkner et al. 2018)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from metatrain.validation import require, require_positive
from tune.history.trials import History
from tune.searchers.observations import Observed, observations, pending, to_quantiles
from tune.searchers.tpe import suggest_by_tpe
from tune.space.search_space import Configuration, Space, draw_uniforms


@dataclass(frozen=True)
class BOHB:
    """Model the results of each rung with Optuna's multivariate TPE and suggest from one rung.

    That rung is the highest with `least` results, or the lowest while no rung has so many; before the lowest has
    `startup` results, trials are drawn from the space. So is a share `random` of the later ones, however sure the model
    is. A trial that failed counts as the worst of every rung that it did not reach, as does one that still runs.

    candidates: draws from the density of good configurations among which Optuna takes the best. good: not used any
    more; it is read so that searches written before Optuna's model was used still load.

    Falkner et al. ask a rung for d + 2 results only; with so few the highest rung soon suggests what it has already.
    """

    random: float = 0.1
    candidates: int = 64
    least: int = 30
    startup: int = 10
    good: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.random <= 1, f"search.method.random: {self.random:g} is not a share: set 0 to 1")
        require(0 < self.good <= 0.5, f"search.method.good: {self.good:g} is not above 0 and at most 0.5: set 0.1")
        require_positive("search.method", candidates=self.candidates, least=self.least, startup=self.startup)

    def suggest(
        self, space: Space, history: History, number: int, seed: int, prior: Sequence[Observed] = ()
    ) -> Configuration:
        """Suggest from the history and from observations of prior studies: (configuration, quantile), 0 the best.

        With prior observations the model suggests from the first trial on.
        """
        (u,) = draw_uniforms(seed, "random-share", number, 1)
        budget = self.modelled_rung(history)
        if u < self.random or (budget is None and not prior):
            return space.sample(seed, number)
        own = [] if budget is None else to_quantiles(observations(history, budget))
        # Prior ones come first: Optuna weighs the oldest of many observations least.
        return suggest_by_tpe(space, [*prior, *own], pending(history, budget), self.candidates, (seed, number))

    def modelled_rung(self, history: History) -> int | None:
        """Return the highest rung with enough results, else the lowest; None before that has `startup` results."""
        counts = Counter(budget for _, budget in history.result_order)
        enough = [budget for budget, count in counts.items() if count >= self.least]
        lowest = [budget for budget, count in sorted(counts.items())[:1] if count >= self.startup]
        return max(enough or lowest, default=None)
