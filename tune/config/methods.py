"""How to search, by name: who suggests, and who goes on. A method joins by a line here.

Its settings are those of its two parts together, in one section: `method: {name: bohb, eta: 3, random: 0.1}`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metatrain.config.load import read_settings
from tune.schedulers.asha import ASHA, FullBudget, Scheduler
from tune.schedulers.pbt import PBT, is_explorable
from tune.searchers import Searcher
from tune.searchers.bohb import BOHB
from tune.searchers.evolution import Evolution
from tune.searchers.random_search import RandomSearch
from tune.searchers.tpe import TPE
from tune.settings import NamedMethod


class Method(NamedTuple):
    """What trials are made of, and what becomes of them."""

    searcher: type[Searcher]
    schedule: type[Scheduler]


METHODS: dict[str, Method] = {
    "bohb": Method(BOHB, ASHA),
    "asha": Method(RandomSearch, ASHA),
    "tpe": Method(TPE, FullBudget),
    "random": Method(RandomSearch, FullBudget),
    "evolution": Method(Evolution, FullBudget),
    "pbt": Method(RandomSearch, PBT),
}
_RUNGS = 4
"""Beside the whole budget, where nothing else is said."""


def read_method(name: str, section: Mapping[str, Any], steps: int, names: Sequence[str]) -> NamedMethod:
    """`section` for the method `name`, of runs of `steps` steps over parameters of these `names`.

    ValueError: the setting, and the remedy.
    """
    method = METHODS[name]
    given = {"max_budget": steps, **_usual(method.schedule, section, steps, names), **section}
    of_searcher = {field.name for field in dataclasses.fields(method.searcher)}  # type: ignore[arg-type]
    searcher = {key: value for key, value in given.items() if key in of_searcher}
    schedule = {key: value for key, value in given.items() if key not in of_searcher}
    where = "search.method"
    read = read_settings(method.schedule, schedule, where, also=sorted(of_searcher))
    return NamedMethod(name, (read_settings(method.searcher, searcher, where), read))


def method_to_plain(method: NamedMethod) -> dict[str, Any]:
    """As `read_method` reads it back; how many steps the whole budget is stands elsewhere."""
    searcher, schedule = (dataclasses.asdict(part) for part in method.settings)
    schedule.pop("max_budget")
    return {"name": method.name, **searcher, **schedule}


def _usual(schedule: type[Scheduler], section: Mapping[str, Any], steps: int, names: Sequence[str]) -> dict[str, Any]:
    """Four rungs below the end; of a population as many comparisons, and explored whatever a checkpoint outlives."""
    if schedule is ASHA:
        eta = section.get("eta", ASHA.eta)
        whole = isinstance(eta, int) and eta > 1
        return {"min_budget": math.ceil(steps / eta**_RUNGS) if whole else 1}
    if schedule is PBT:
        return {"interval": max(1, steps // (_RUNGS + 1)), "explored": [name for name in names if is_explorable(name)]}
    return {}
