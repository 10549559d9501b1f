"""Suggest by regularised evolution: the oldest member is replaced, not the worst (Real et al. 2019, algorithm 1)."""

from dataclasses import dataclass

from metatrain.validation import require, require_positive
from tune.history.trials import History, Trial
from tune.space.search_space import Configuration, Space, draw_uniforms


@dataclass(frozen=True)
class Evolution:
    """Mutate one parameter of the best of `tournament` members, drawn without replacement from the population.

    The population is the latest `population` trials that have a result or have failed; until there are so many, trials
    are drawn at random. A trial with a larger budget is better than one that was stopped earlier; at equal budgets the
    smaller loss is better.
    """

    population: int = 20
    tournament: int = 5

    def __post_init__(self) -> None:
        require_positive("search.method", population=self.population, tournament=self.tournament)
        above = f"search.method.tournament: {self.tournament} is above the population, {self.population}: lower it"
        require(self.tournament <= self.population, above)

    def suggest(self, space: Space, history: History, number: int, seed: int) -> Configuration:
        parent = self.select_parent(history, number, seed)
        return space.sample(seed, number) if parent is None else space.mutate(parent.configuration, seed, number)

    def select_parent(self, history: History, number: int, seed: int) -> Trial | None:
        """Return a tournament's winner; None while the population is incomplete or no drawn member has a result."""
        tried = [trial for trial in history.trials if trial.results or trial.has_failed]
        if len(tried) < self.population:
            return None
        members = tried[-self.population :]
        quantiles = draw_uniforms(seed, "tournament", number, self.tournament)
        # Each is taken from those left: a draw without replacement.
        drawn = [members.pop(int(u * len(members))) for u in quantiles]
        fit = [trial for trial in drawn if trial.results and not trial.has_failed]
        most = max((trial.budget for trial in fit), default=0)
        furthest = [trial for trial in fit if trial.budget == most]
        losses = history.losses([(trial, trial.results[-1][1]) for trial in furthest])
        return min(zip(losses, furthest, strict=True), key=lambda pair: pair[0], default=(0.0, None))[1]
