"""Define what a searcher is. A new one is one file, one line in `tune.config.methods` and one conformance row.

A searcher is a pure function of (space, history, number, seed): it keeps no state between suggestions, so there is
nothing to save, and a resumed study suggests what the uninterrupted one would have.
"""

from typing import Protocol

from tune.history.trials import History
from tune.space.search_space import Configuration, Space


class Searcher(Protocol):
    """Suggest configurations. Its settings are its fields; they are part of the function."""

    def suggest(self, space: Space, history: History, number: int, seed: int) -> Configuration:
        """Return suggestion `number`, from 0 on, given the history at the time when it begins."""
