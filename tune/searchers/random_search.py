"""Suggest at random: each trial is a draw from the space (Bergstra and Bengio 2012)."""

from dataclasses import dataclass

from tune.history.trials import History
from tune.space.search_space import Configuration, Space


@dataclass(frozen=True)
class RandomSearch:
    """Draw each configuration independently: the baseline of every searcher."""

    def suggest(self, space: Space, history: History, number: int, seed: int) -> Configuration:
        return space.sample(seed, number)
