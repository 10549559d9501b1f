"""A search as it is written: a configuration, the space over its fields, and what is looked for.

    base: sinusoid-maml.yaml                       # or the configuration itself, here; or some of it, over the base's
    outer: {steps: 2000}
    search: {metric: validation/mse, minutes: 10, method: {name: bohb, eta: 3}}
    space:
      algorithm.inner_lr: loguniform(1e-4, 1e-1)
      outer.lr: loguniform(1e-4, 1e-2)

A bad one raises ValueError with one line: the field, what is wrong, the remedy.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metatrain.config.load import as_plain, read_config, read_settings
from metatrain.settings import Config
from metatrain.validation import require, suggest_name
from metatrain.yaml_config import flat, load_yaml, overridden, short, written
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
_FIXED = {
    "outer.steps": "how long a trial lasts is its method's to decide: set it for all of them in the configuration",
    "tasks": "trials must be judged on the same tasks: only tasks.train may be searched over",
    "seed": "a seed that was chosen for its result promises nothing: leave it out",
    **dict.fromkeys(
        ("executor", "runs", "checkpoint", "tracking", "evaluation"),
        "it is how trials are computed, kept or judged, the same for all: set it in the configuration",
    ),
}
_DRAWS = 64
"""Configurations of a space that are looked at before it is searched."""
_FREE = ("search.trials", "search.minutes", "search.at_once", "search.failures", "search.retries", "tracking.uri")
_FREE_SECTIONS = ("executor.name", "executor.workers", "executor.address", "executor.timeout", "executor.deadline")


@dataclass(frozen=True)
class SearchConfig:
    """`base` is the training configuration that every trial's is made of."""

    base: Config
    search: SearchSettings
    space: Space

    def plain(self) -> dict[str, Any]:
        """`read_document` reads it back to an equal one."""
        settings = dataclasses.asdict(dataclasses.replace(self.search, method=NamedMethod("", ())))
        settings["method"] = method_to_plain(self.search.method)
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        return {**as_plain(self.base), "search": listed, "space": self.space.to_plain()}

    def text(self) -> str:
        """As YAML."""
        return written(self.plain())

    def study_spec(self, experience: PriorStudies | None = None) -> StudySpec:
        """What the search itself is told, with the experience that it began with, if any. ValueError: see `Plan`."""
        settings = self.search
        searcher, scheduler = settings.method.settings
        return StudySpec(
            space=self.space,
            searcher=searcher if experience is None else WarmStart(searcher, experience),
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

    def trial(self, configuration: Mapping[str, Any]) -> Config:
        """The configuration of one trial. ValueError: these values do not go together."""
        return read_config(apply_configuration(as_plain(self.base), configuration))


def load_search_config(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """The search in a YAML file, with `a.b=value` overrides."""
    begin = "a base, search and space, as configs/search-*.yaml do"
    raw = load_yaml(path, "a search, such as configs/search-*.yaml", begin)
    _refuse_plain_configuration(raw, path)
    if "base" in raw:
        base = raw.pop("base")
        require(isinstance(base, str), f"base: {short(base)} is no file: name a configuration, beside {path.name}")
        raw = _over(load_yaml(path.parent / base, "a configuration, such as configs/*.yaml", "tasks, model"), raw)
    return read_search_config(overridden(raw, overrides))


def read_search_config(raw: Mapping[str, Any]) -> SearchConfig:
    """The Document that a plain mapping describes; its space was tried against its configuration."""
    for part in ("search", "space"):
        require(part in raw, f"{part}: missing: write it, as configs/search-*.yaml do")
    base = read_config({key: value for key, value in raw.items() if key not in _OURS})
    space = read_space(raw["space"])
    document = SearchConfig(base, _read_search(raw["search"], base, space), space)
    _check_space(document)
    for first in document.study_spec().initial_trials:
        trouble = _trouble(document, first)
        require(trouble is None, f"search.first: {trouble}")
    return document


def update_search_config(before: SearchConfig, overrides: Sequence[str]) -> SearchConfig:
    """A search's document for going on with it: what is looked for stays; how long, and who computes, may change."""
    plain = before.plain()
    changed = read_search_config(overridden(plain, overrides))
    old, new = flat(plain), flat(changed.plain())
    for key in sorted(old.keys() | new.keys()):
        differs = old.get(key) != new.get(key)
        if differs and not key.startswith((*_FREE, *_FREE_SECTIONS)):
            free = ", ".join(_FREE)
            raise ValueError(f"{key}: a search goes on as it began: leave it out, or search anew; {free} may be set")
    return changed


def _refuse_plain_configuration(raw: Mapping[str, Any], path: Path) -> None:
    explain_shortage = not {"search", "space"} & raw.keys()
    require(not explain_shortage, f"{path}: is a configuration to be trained, not a search: add search and space to it")


def _over(below: Any, above: Any) -> dict[str, Any]:
    """`above` put over `below`, section by section; a section with another `name` takes the place of the other."""
    result = dict(below)
    for key, value in above.items():
        known = result.get(key)
        within = isinstance(known, dict) and isinstance(value, dict)
        result[key] = _over(known, value) if within and not _is_another(key, known, value) else value
    return result


def _is_another(key: str, known: Any, value: Any) -> bool:
    """Whether a section names another model, say, to which the settings of the known one mean nothing."""
    return key in ("tasks", "model", "algorithm") and value.get("name", known.get("name")) != known.get("name")


def _read_search(section: Any, base: Config, space: Space) -> SearchSettings:
    require(isinstance(section, dict), f"search: {short(section)} is no section: write its settings below it")
    method = section.get("method", {"name": "bohb"})
    method = {"name": method} if isinstance(method, str) else method
    require(isinstance(method, dict) and "name" in method, "search.method: name one, such as {name: bohb}")
    name = method["name"]
    if not isinstance(name, str) or name not in METHODS:
        hint = suggest_name(str(name), METHODS)
        raise ValueError(f"search.method.name: no {short(name)}{hint}: choose among {', '.join(METHODS)}")
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


def _check_space(document: SearchConfig) -> None:
    """ValueError for a field that is none, is not to be searched over, or takes none of its domain's values."""
    space = document.space
    for parameter in space.parameters:
        for fixed, reason in _FIXED.items():
            within = parameter.name == fixed or parameter.name.startswith(f"{fixed}.")
            require(not within or parameter.name.startswith("tasks.train."), f"space.{parameter.name}: {reason}")
    told = [(draw, _trouble(document, draw)) for draw in _looked_at(space)]
    for parameter in space.parameters:
        mine = [(draw, trouble) for draw, trouble in told if parameter.name in draw]
        blamed = [trouble for _, trouble in mine if trouble is not None and _blames(trouble, parameter.name)]
        unknown = [trouble for trouble in blamed if "no such setting" in trouble]
        options = parameter.distribution.options if isinstance(parameter.distribution, Categorical) else [None]
        for option in options:
            with_it = [trouble for draw, trouble in mine if option is None or is_same(draw[parameter.name], option)]
            bad = [trouble for trouble in with_it if trouble in blamed]
            if unknown or (bad and len(bad) == len(with_it)):
                raise ValueError(f"space.{(unknown or bad)[0]}{_hint(space, parameter.name) if unknown else ''}")
    if all(trouble is not None for _, trouble in told):
        raise ValueError(f"space: no configuration of it can be trained, {told[0][1]}")


def _hint(space: Space, name: str) -> str:
    """For a field that only some options of a section have."""
    above = [other.name for other in space.parameters if name.startswith(f"{other.name}.")]
    return f"; if some options of {above[0]} have it, write its domain as from: and when:" if above else ""


def _blames(trouble: str, name: str) -> bool:
    """Whether it is said of this field, of its section, or of a setting within it."""
    field = trouble.partition(":")[0]
    return field == name or name.startswith(f"{field}.") or field.startswith(f"{name}.")


def _looked_at(space: Space) -> list[Configuration]:
    return [space.sample(0, number, "rehearsal") for number in range(_DRAWS)]


def _trouble(document: SearchConfig, configuration: Configuration) -> str | None:
    try:
        document.trial(configuration)
    except ValueError as error:
        return str(error)
    return None
