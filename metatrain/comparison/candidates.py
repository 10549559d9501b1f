"""Open the runs that are compared: their configurations, best parameters, the classes they were trained on."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from metatrain.config.best_params import best_params
from metatrain.config.dry_run import dry_run
from metatrain.config.load import load_config
from metatrain.config.other_algorithm import select_params
from metatrain.config.run_data import read_evaluation_config
from metatrain.runs import Run
from metatrain.runs.data_record import read_data
from metatrain.runs.locations import is_search, open_run
from metatrain.settings import Config
from metatrain.training.devices import driver_device
from metatrain.types import Params
from metatrain.validation import require
from metatrain.yaml_config import apply_overrides, flatten
from tasks.types import DataRecord


class Candidate(NamedTuple):
    """One of the runs that are compared."""

    label: str
    home: Run
    trained: Config
    """Its configuration, with the settings that it is compared under."""
    params: Params
    """The best by validation, those of them that its algorithm reads."""
    spec: dict[str, Any]
    """What the tasks had in common that it was trained on."""
    kept: DataRecord | None
    """Its record of the data it was trained on."""
    own: Sequence[str] = ()
    """Its own settings, as key=value."""


def open_candidates(places: Sequence[str], trust: bool = False, labels: Sequence[str] = ()) -> list[Candidate]:
    """Open the runs at `places`, folders or s3://…, each labelled by its name, or by its id where two share a name.

    A place may end in settings of the run's own: RUN,algorithm.name=nearest_centroid; its label has their values.
    labels: others, one for each.
    ValueError: one is named twice, is a search or holds no checkpoint; or this user did not make it and it names code
    to import, without `trust`.
    """
    named = [_split_own(place) for place in places]
    homes = [open_run(place) for place, _ in named]
    told = [
        ",".join([str(home.path.resolve()) if home.storage is None else home.where, *own])
        for home, (_, own) in zip(homes, named, strict=True)
    ]
    for where, times in Counter(told).items():
        require(times == 1, f"RUN…: {where} is named {times} times: name each run once")
    for home in homes:
        several = f"{home.where}: is a search of several runs: name those of its trials/, or use `metatrain report`"
        require(not is_search(home), several)
    configs = [load_config(home.config, trust=trust) for home in homes]
    runs = {home.where: (config.runs.name, home.run_id) for home, config in zip(homes, configs, strict=True)}
    names, ids = (Counter(values) for values in zip(*runs.values(), strict=True))
    found = []
    for number, (home, config) in enumerate(zip(homes, configs, strict=True)):
        own = named[number][1]
        unique = home.run_id if ids[home.run_id] == 1 else home.where
        label = config.runs.name if names[config.runs.name] == 1 else unique
        label = " ".join([label, *(setting.partition("=")[2] for setting in own)])
        params, _, noted = best_params(home)
        config, params = _with_own(home.where, config, params, own) if own else (config, params)
        label = labels[number] if labels else label
        found.append(Candidate(label, home, config, params, noted["spec"], read_data(home), own))
    return found


def _split_own(place: str) -> tuple[str, list[str]]:
    """Split RUN,KEY=VALUE,KEY=VALUE at the commas before a key."""
    where, *own = re.split(r",(?=[A-Za-z_][\w.]*=)", place)
    return where, own


def _with_own(where: str, config: Config, params: Params, own: Sequence[str]) -> tuple[Config, Params]:
    """Return a run's configuration with settings of its own, and of its parameters those that its algorithm reads."""
    for key in flatten(apply_overrides({}, own)):
        known = key.startswith("algorithm.") or key == "evaluation.inner_steps"
        require(known, f"{where}: {key} cannot differ between runs: set algorithm.* or evaluation.inner_steps")
    settings = read_evaluation_config(config, own)
    params, incomplete = select_params(params, dry_run(settings, driver_device(settings)), config, own)
    name = settings.names.algorithm
    require(
        not incomplete,
        f"{where}: {name} reads a mean over training tasks that the run does not keep: train {name}, or set "
        "nearest_centroid",
    )
    return settings, params
