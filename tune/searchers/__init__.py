"""What to try next, by name. A searcher joins by its own file, a line here and a row of the conformance suite.

A searcher is a pure function of (space, history, number, seed): it keeps nothing from one suggestion to the next, so
there is nothing to save, and a search that was resumed suggests what the undisturbed one would have.
"""

from typing import Protocol

from tune.history.trials import History
from tune.searchers.bohb import BOHB
from tune.searchers.evolution import Evolution
from tune.searchers.random_search import RandomSearch
from tune.searchers.tpe import TPE
from tune.space.search_space import Configuration, Space


class Searcher(Protocol):
    """Suggests configurations. What it may be told is its fields; they are part of the function."""

    def suggest(self, space: Space, history: History, number: int, seed: int) -> Configuration:
        """The searcher's suggestion `number`, from 0 on, of `space`, given all that is known when it begins."""
        ...


SEARCHERS: dict[str, type[Searcher]] = {"random": RandomSearch, "tpe": TPE, "bohb": BOHB, "evolution": Evolution}
