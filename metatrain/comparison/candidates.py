"""Open the runs that are compared: their configurations, best parameters, the classes they were trained on."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from metatrain.config.best_params import best_params
from metatrain.config.load import load_config
from metatrain.runs import Run
from metatrain.runs.data_record import read_data
from metatrain.runs.locations import is_search, open_run
from metatrain.settings import Config
from metatrain.types import Params
from metatrain.validation import require
from tasks.types import DataRecord


class Candidate(NamedTuple):
    """One of the runs that are compared."""

    label: str
    home: Run
    trained: Config
    params: Params
    """The best by validation."""
    spec: dict[str, Any]
    """What the tasks had in common that it was trained on."""
    kept: DataRecord | None
    """Its record of the data it was trained on."""


def open_candidates(places: Sequence[str], trust: bool = False, labels: Sequence[str] = ()) -> list[Candidate]:
    """Open the runs at `places`, folders or s3://…, each labelled by its name, or by its id where two share a name.

    labels: others, one for each.
    ValueError: one is named twice, is a search or holds no checkpoint; or this user did not make it and it names code
    to import, without `trust`.
    """
    homes = [open_run(place) for place in places]
    told = [str(home.path.resolve()) if home.storage is None else home.where for home in homes]
    for where, times in Counter(told).items():
        require(times == 1, f"RUN…: {where} is named {times} times: name each run once")
    for home in homes:
        several = f"{home.where}: is a search of several runs: name those of its trials/, or use `metatrain report`"
        require(not is_search(home), several)
    configs = [load_config(home.config, trust=trust) for home in homes]
    names = Counter(config.runs.name for config in configs)
    ids = Counter(home.run_id for home in homes)
    found = []
    for number, (home, config) in enumerate(zip(homes, configs, strict=True)):
        unique = home.run_id if ids[home.run_id] == 1 else home.where
        label = config.runs.name if names[config.runs.name] == 1 else unique
        label = labels[number] if labels else label
        params, _, noted = best_params(home)
        found.append(Candidate(label, home, config, params, noted["spec"], read_data(home)))
    return found
