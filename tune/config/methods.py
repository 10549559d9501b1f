"""Combine searchers and schedulers into the methods that `search.method.name` selects. A new method is one line here.

The settings of both parts stand in one section: `method: {name: bohb, eta: 3, random: 0.1}`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metatrain.config.sections import read_settings
from tune.schedulers.asha import ASHA, FullBudget, Scheduler
from tune.schedulers.pbt import PBT, is_explorable
from tune.searchers import Searcher
from tune.searchers.bohb import BOHB
from tune.searchers.evolution import Evolution
from tune.searchers.random_search import RandomSearch
from tune.searchers.tpe import TPE
from tune.settings import NamedMethod


class Method(NamedTuple):
    """Which searcher proposes trials, and which scheduler stops them."""

    searcher: type[Searcher]
    scheduler: type[Scheduler]


METHODS: dict[str, Method] = {
    "bohb": Method(BOHB, ASHA),
    "asha": Method(RandomSearch, ASHA),
    "tpe": Method(TPE, FullBudget),
    "random": Method(RandomSearch, FullBudget),
    "evolution": Method(Evolution, FullBudget),
    "pbt": Method(RandomSearch, PBT),
}
_RUNGS = 4
"""Default number of rungs below the whole budget."""


def read_method(name: str, section: Mapping[str, Any], steps: int, names: Sequence[str]) -> NamedMethod:
    """Read the settings of method `name` for runs of `steps` steps over parameters of these `names`.

    ValueError: the setting, and the remedy.
    """
    method = METHODS[name]
    given = {"max_budget": steps, **_default_settings(method.scheduler, section, steps, names), **section}
    of_searcher = {field.name for field in dataclasses.fields(method.searcher)}  # type: ignore[arg-type]
    searcher = {key: value for key, value in given.items() if key in of_searcher}
    scheduler = {key: value for key, value in given.items() if key not in of_searcher}
    where = "search.method"
    read = read_settings(method.scheduler, scheduler, where, also=sorted(of_searcher))
    return NamedMethod(name, (read_settings(method.searcher, searcher, where), read))


def method_to_plain(method: NamedMethod) -> dict[str, Any]:
    """Return the section that `read_method` reads, without the whole budget, which is `outer.steps`."""
    searcher, scheduler = (dataclasses.asdict(part) for part in method.settings)
    scheduler.pop("max_budget")
    return {"name": method.name, **searcher, **scheduler}


def _default_settings(
    scheduler: type[Scheduler], section: Mapping[str, Any], steps: int, names: Sequence[str]
) -> dict[str, Any]:
    """Return defaults: four rungs below the end, or as many comparisons of all explorable parameters."""
    if scheduler is ASHA:
        eta = section.get("eta", ASHA.eta)
        whole = isinstance(eta, int) and eta > 1
        return {"min_budget": math.ceil(steps / eta**_RUNGS) if whole else 1}
    if scheduler is PBT:
        return {"interval": max(1, steps // (_RUNGS + 1)), "explored": [name for name in names if is_explorable(name)]}
    return {}
