"""Load a search configuration from YAML: a training configuration, a space over its fields, and search settings.

    base: sinusoid-maml.yaml                       # or the configuration itself, here; or some of it, over the base's
    outer: {steps: 2000}
    search: {metric: validation/mse, minutes: 10, method: {name: bohb, eta: 3}}
    space:
      algorithm.inner_lr: loguniform(1e-4, 1e-1)
      outer.lr: loguniform(1e-4, 1e-2)

An invalid file raises ValueError with one line: the field, what is wrong, the remedy.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metatrain.config.load import CHANGEABLE_EXECUTOR, as_plain, read_config
from metatrain.config.sections import read_settings
from metatrain.config.shipped import find_config
from metatrain.settings import Config
from metatrain.trust import require_known_code, require_same_code
from metatrain.validation import require
from metatrain.yaml_config import apply_overrides, changed_keys, dump_yaml, load_yaml, shorten
from tasks.io.home import expand_home
from tasks.plugins import suggest_name
from tune.config.initial_trials import read_initial_trial
from tune.config.methods import METHODS, method_to_plain, read_method
from tune.searchers.evolution import Evolution
from tune.searchers.warm_start import WarmStart
from tune.settings import NamedMethod, SearchSettings
from tune.space.distributions import Categorical, is_same
from tune.space.search_space import Configuration, Space, apply_configuration, read_space
from tune.study import StudySpec
from tune.transfer.prior_studies import PriorStudies

_OURS = ("base", "search", "space")
FIXED = {
    "outer.steps": "the method decides how long a trial lasts: set it for all of them in the configuration",
    "tasks": "trials must be judged on the same tasks: only tasks.train may be searched over",
    "seed": "a seed chosen for its result predicts nothing: remove it, or list all trials under search.first",
    **dict.fromkeys(
        ("executor", "runs", "checkpoint", "tracking", "evaluation"),
        "it says how trials are computed, kept or judged, the same for all: set it in the configuration",
    ),
}
_DRAWS = 64
"""Configurations drawn from a space to check it before it is searched."""
_CHANGEABLE = ("search.trials", "search.minutes", "search.at_once", "search.failures", "search.retries", "tracking.uri")


@dataclass(frozen=True)
class SearchConfig:
    """A search as it is configured. `base` is the training configuration that every trial's is made from."""

    base: Config
    search: SearchSettings
    space: Space

    def __post_init__(self) -> None:
        placed = "executor.workers_per_node: a search places the workers of its trials itself: remove it"
        require(self.base.executor.workers_per_node is None, placed)

    def to_plain(self) -> dict[str, Any]:
        """Return the plain mapping from which `read_search_config` reads an equal one."""
        settings = dataclasses.asdict(dataclasses.replace(self.search, method=NamedMethod("", ())))
        settings["method"] = method_to_plain(self.search.method)
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        return {**as_plain(self.base), "search": listed, "space": self.space.to_plain()}

    def to_yaml(self) -> str:
        """Return it as YAML."""
        return dump_yaml(self.to_plain())

    def study_spec(self, prior: PriorStudies | None = None) -> StudySpec:
        """Return the specification of the study, with the prior studies that it begins with. ValueError: see
        `StudySpec`.
        """
        settings = self.search
        searcher, scheduler = settings.method.settings
        return StudySpec(
            space=self.space,
            searcher=searcher if prior is None else WarmStart(searcher, prior),
            scheduler=scheduler,
            metric=settings.metric,
            mode=settings.mode,
            seed=settings.seed,
            trials=settings.trials,
            failures=settings.failures,
            objectives=settings.objectives,
            initial_trials=tuple(
                read_initial_trial(given, self.space, as_plain(self.base)) for given in settings.first
            ),
        )

    def trial_config(self, configuration: Mapping[str, Any]) -> Config:
        """Return the configuration of one trial. ValueError: its values are incompatible, or name other code."""
        require_same_code(configuration, self.space.to_plain(), "a trial")
        return read_config(apply_configuration(as_plain(self.base), configuration))


def load_search_config(path: str | Path, overrides: Sequence[str] = (), trust: bool = False) -> SearchConfig:
    """Load the search in a YAML file, with `a.b=value` overrides. `trust` is as in `load_config`."""
    begin = "a base, search and space, as configs/search-*.yaml do"
    path = find_config(path)
    raw = load_yaml(path, "a search, such as configs/search-*.yaml", begin)
    no_search = not {"search", "space"} & raw.keys()
    require(not no_search, f"{path}: is a configuration to be trained, not a search: add search and space to it")
    if "base" in raw:
        base = raw.pop("base")
        require(isinstance(base, str), f"base: {shorten(base)} is not a file: name a configuration, beside {path.name}")
        raw = _merge(
            load_yaml(path.parent / expand_home(base), "a configuration, such as configs/*.yaml", "tasks, model"), raw
        )
    require_known_code(path, raw, trust)
    return read_search_config(apply_overrides(raw, overrides))


def read_search_config(raw: Mapping[str, Any]) -> SearchConfig:
    """Read a search from a plain mapping and try its space against its configuration."""
    for part in ("search", "space"):
        require(part in raw, f"{part}: missing: write it, as configs/search-*.yaml do")
    base = read_config({key: value for key, value in raw.items() if key not in _OURS})
    space = read_space(raw["space"])
    config = SearchConfig(base, _read_search(raw["search"], base, space), space)
    _check_space(config)
    for first in config.study_spec().initial_trials:
        trouble = _explain_invalid(config, first)
        require(trouble is None, f"search.first: {trouble}")
    return config


def update_search_config(before: SearchConfig, overrides: Sequence[str]) -> SearchConfig:
    """Change the configuration of a search that is resumed: only its limits and resources may change."""
    plain = before.to_plain()
    changed = read_search_config(apply_overrides(plain, overrides))
    for key in changed_keys(plain, changed.to_plain()):
        free = ", ".join(_CHANGEABLE)
        fixed = f"{key}: cannot change in a resumed search: remove it, or start a new search; {free} may be set"
        require(key.startswith((*_CHANGEABLE, *CHANGEABLE_EXECUTOR)), fixed)
    return changed


def _merge(below: Any, above: Any) -> dict[str, Any]:
    """Merge `above` over `below`, section by section; a section with another `name` replaces the other."""
    result = dict(below)
    for key, value in above.items():
        known = result.get(key)
        within = isinstance(known, dict) and isinstance(value, dict)
        result[key] = _merge(known, value) if within and not _is_other_component(key, known, value) else value
    return result


def _is_other_component(key: str, known: Any, value: Any) -> bool:
    """Return whether a section names another model, say, so that settings of the known one do not apply."""
    return key in ("tasks", "model", "algorithm") and value.get("name", known.get("name")) != known.get("name")


def _read_search(section: Any, base: Config, space: Space) -> SearchSettings:
    require(isinstance(section, dict), f"search: {shorten(section)} is not a section: write its settings below it")
    method = section.get("method", {"name": "bohb"})
    method = {"name": method} if isinstance(method, str) else method
    require(isinstance(method, dict) and "name" in method, "search.method: name one, such as {name: bohb}")
    name = method["name"]
    if not isinstance(name, str) or name not in METHODS:
        hint = suggest_name(str(name), METHODS)
        raise ValueError(f"search.method.name: no {shorten(name)}{hint}: choose among {', '.join(METHODS)}")
    settings = {key: value for key, value in method.items() if key != "name"}
    require("max_budget" not in settings, "search.method.max_budget: is outer.steps: set that")
    read = read_method(name, settings, base.outer.steps, [parameter.name for parameter in space.parameters])
    rest = {key: value for key, value in section.items() if key != "method"}
    rest |= {key: [rest[key]] for key in ("warm_start", "objectives", "first") if isinstance(rest.get(key), str)}
    if isinstance(rest.get("first"), list):
        rest["first"] = [{} if one == "base" else one for one in rest["first"]]
    found: SearchSettings = read_settings(SearchSettings, {**rest, "method": read}, "search")
    searcher, _ = read.settings
    if isinstance(searcher, Evolution) and found.trials is not None:
        few = f"search.trials: {found.trials} leave a population of {searcher.population} none to evolve: set more"
        require(found.trials > searcher.population, few)
    return found


def _check_space(config: SearchConfig) -> None:
    """Raise ValueError for a field that does not exist, must stay fixed, or accepts no value of its distribution."""
    space, search = config.space, config.search
    listed = search.trials is not None and search.trials <= len(search.first)
    for parameter in space.parameters:
        for fixed, reason in FIXED.items():
            if fixed == "seed" and listed:
                continue
            within = parameter.name == fixed or parameter.name.startswith(f"{fixed}.")
            require(not within or parameter.name.startswith("tasks.train."), f"space.{parameter.name}: {reason}")
    draws = [space.sample(0, number, "rehearsal") for number in range(_DRAWS)]
    tried = [(draw, _explain_invalid(config, draw)) for draw in draws]
    for parameter in space.parameters:
        mine = [(draw, trouble) for draw, trouble in tried if parameter.name in draw]
        blamed = [trouble for _, trouble in mine if trouble is not None and _is_about(trouble, parameter.name)]
        unknown = [trouble for trouble in blamed if "no such setting" in trouble]
        options = parameter.distribution.options if isinstance(parameter.distribution, Categorical) else [None]
        for option in options:
            with_it = [trouble for draw, trouble in mine if option is None or is_same(draw[parameter.name], option)]
            bad = [trouble for trouble in with_it if trouble in blamed]
            if unknown or (bad and len(bad) == len(with_it)):
                raise ValueError(
                    f"space.{(unknown or bad)[0]}{_suggest_condition(space, parameter.name) if unknown else ''}"
                )
    if all(trouble is not None for _, trouble in tried):
        raise ValueError(f"space: no configuration of it can be trained, {tried[0][1]}")


def _suggest_condition(space: Space, name: str) -> str:
    """Suggest a condition for a field that only some options of a section have."""
    above = [other.name for other in space.parameters if name.startswith(f"{other.name}.")]
    return f"; if some options of {above[0]} have it, write its distribution as from: and when:" if above else ""


def _is_about(trouble: str, name: str) -> bool:
    """Return whether an error is about this field, its section, or a setting within it."""
    field = trouble.partition(":")[0]
    return field == name or name.startswith(f"{field}.") or field.startswith(f"{name}.")


def _explain_invalid(config: SearchConfig, configuration: Configuration) -> str | None:
    try:
        config.trial_config(configuration)
    except ValueError as error:
        return str(error)
    return None
