"""List the searchers by name. A new one is one file, one line here and one row of the conformance suite.

A searcher is a pure function of (space, history, number, seed): it keeps no state between suggestions, so there is
nothing to save, and a resumed study suggests what the uninterrupted one would have.
"""

from typing import Protocol

from tune.history.trials import History
from tune.searchers.bohb import BOHB
from tune.searchers.evolution import Evolution
from tune.searchers.random_search import RandomSearch
from tune.searchers.tpe import TPE
from tune.space.search_space import Configuration, Space


class Searcher(Protocol):
    """Suggest configurations. Its settings are its fields; they are part of the function."""

    def suggest(self, space: Space, history: History, number: int, seed: int) -> Configuration:
        """Return suggestion `number`, from 0 on, given the history at the time when it begins."""


SEARCHERS: dict[str, type[Searcher]] = {"random": RandomSearch, "tpe": TPE, "bohb": BOHB, "evolution": Evolution}
