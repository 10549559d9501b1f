"""Plan an ablation: a search whose trials are all listed, the base and each change of it, with each seed.

axes = read_axes(["algorithm.inner_steps=1,3,5", "algorithm.name=fomaml"], base)
config = plan_ablation(base, axes, seeds=(0, 1), grid=False)   # a `SearchConfig`, which `tune.runner.search` runs
variants = read_variants(config)                               # of each of its trials what it is
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from metatrain.config.load import as_plain, read_config
from metatrain.settings import Config
from metatrain.validation import require
from metatrain.yaml_config import dump_inline, flatten, parse_yaml, shorten
from tasks.opening import open_tasks
from tasks.plugins import suggest_name
from tune.config.search_config import FIXED, SearchConfig, read_search_config
from tune.space.distributions import Categorical, Value, is_same
from tune.space.search_space import apply_configuration

SEED = "seed"
MOST_TRIALS = 1000
_INSTEAD = {SEED: "give seeds by --seeds", "outer.steps": "all runs take as many: use --set outer.steps=…"}
"""Remedies for settings that no axis may change, where an ablation has its own."""


class Axis(NamedTuple):
    """A setting that is changed: its dotted key, the base's own value, and the others that are tried."""

    name: str
    own: Value
    values: tuple[Value, ...]

    @property
    def choice(self) -> Categorical:
        """Return all of its values, the base's own first."""
        return Categorical((self.own, *self.values))


class Variant(NamedTuple):
    """What a trial is: the settings in which it differs from the base, none for the base itself, and its seed."""

    changes: dict[str, Value]
    seed: int

    @property
    def label(self) -> str:
        """Return its name for people: base, or algorithm.inner_steps=3."""
        return label_of(self.changes)


def label_of(changes: Mapping[str, Value]) -> str:
    """Return the name of a variant: base, or algorithm.inner_steps=3."""
    return " ".join(f"{name}={dump_inline(value)}" for name, value in changes.items()) or "base"


def read_axes(written: Sequence[str], base: Config) -> list[Axis]:
    """Read "axis=value,value" texts, values as YAML. The base's own value may be among them, and is not tried twice.

    ValueError: a key or value that is unknown, given twice, or refused by the configuration, with the remedy.
    """
    require(len(written) > 0, "AXIS=VALUE…: missing: name a setting and its values, such as algorithm.inner_steps=1,3")
    plain = as_plain(base)
    axes: dict[str, Axis] = {}
    for text in written:
        axis = _read_axis(text, plain)
        require(axis.name not in axes, f"{axis.name}: is given twice: list all of its values in one, as a=1,2")
        axes[axis.name] = axis
    for name in axes:
        above = [other for other in axes if name.startswith(f"{other}.")]
        within = f"{name}: lies within {''.join(above[:1])}: write it in the sections that are its values"
        require(not above, within)
    for axis in axes.values():
        for value in axis.values:
            try:
                read_config(apply_configuration(plain, {axis.name: value}))
            except ValueError as error:
                raise ValueError(f"{axis.name}={dump_inline(value)}: {error}") from error
    return list(axes.values())


def _read_axis(text: str, plain: Mapping[str, Any]) -> Axis:
    name, equals, listed = text.partition("=")
    require(bool(equals and name and listed), f"{shorten(text)}: is no axis: write key=value,value")
    for fixed, reason in FIXED.items():
        instead = _INSTEAD.get(fixed, reason)
        within = name == fixed or name.startswith(f"{fixed}.")
        require(not within or name.startswith("tasks.train."), f"{name}: {instead}")
    own = _value_of(name, plain)
    values: list[Value] = parse_yaml(f"[{listed}]", name)
    for number, value in enumerate(values):
        twice = any(is_same(value, other) for other in values[:number])
        require(not twice, f"{name}: {dump_inline(value)} stands twice: give each value once")
    others = tuple(value for value in values if not is_same(value, own))
    same = f"{name}: {dump_inline(own)} is its value in the configuration, so nothing changes: give another"
    require(len(others) > 0, same)
    return Axis(name, own, others)


def _value_of(name: str, plain: Mapping[str, Any]) -> Value:
    """Return the value of a setting. ValueError: the configuration has none of this name."""
    place: Any = plain
    for section in name.split("."):
        if not isinstance(place, Mapping) or section not in place:
            hint = suggest_name(name, list(flatten(plain)))
            raise ValueError(f"{name}: no such setting in this configuration{hint}: see `metatrain config show`")
        place = place[section]
    return place


def plan_ablation(base: Config, axes: Sequence[Axis], seeds: Sequence[int] = (), grid: bool = False) -> SearchConfig:
    """Return the search whose trials are the base and its changes, each with every seed (the base's own by default).

    grid: all combinations of values instead of one change at a time. ValueError: two settings that do not go together.
    """
    seeds = seeds or (base.seed,)
    require(len(set(seeds)) == len(seeds), f"--seeds: {', '.join(map(str, seeds))}: names one twice: name each once")
    base = replace(base, seed=seeds[0])
    first = [{**change, SEED: seed} for change in _changes(axes, grid) for seed in seeds]
    require(len(first) <= MOST_TRIALS, f"{len(first)} runs are more than {MOST_TRIALS}: give fewer values or seeds")
    space = {axis.name: str(axis.choice) for axis in axes}
    space |= {SEED: str(Categorical(tuple(seeds)))} if len(seeds) > 1 else {}
    listed = [{key: value for key, value in one.items() if key in space} for one in first]
    kind = open_tasks(base.tasks.source, base.names.tasks, "validation", base.tasks.test, 0).spec.kind
    search = {
        "metric": "validation/accuracy" if kind == "classification" else "validation/mse",
        "method": "random",  # of which nothing comes: all trials are listed
        "trials": len(listed),
        "failures": max(5, len(listed)),
        "first": listed,
    }
    return read_search_config({**as_plain(base), "search": search, "space": space})


def _changes(axes: Sequence[Axis], grid: bool) -> list[dict[str, Value]]:
    """Return what is changed in each variant, the base first, which changes nothing."""
    if not grid:
        return [{}, *({axis.name: value} for axis in axes for value in axis.values)]
    combined = product(*(axis.choice.options for axis in axes))
    return [
        {axis.name: value for axis, value in zip(axes, values, strict=True) if not is_same(value, axis.own)}
        for values in combined
    ]


def axes_of(config: SearchConfig) -> list[Axis]:
    """Return the axes of a planned ablation."""
    plain = as_plain(config.base)
    found = []
    for parameter in config.space.parameters:
        if parameter.name != SEED and isinstance(parameter.distribution, Categorical):
            own = _value_of(parameter.name, plain)
            others = tuple(value for value in parameter.distribution.options if not is_same(value, own))
            found.append(Axis(parameter.name, own, others))
    return found


def read_variants(config: SearchConfig) -> list[Variant]:
    """Return of each trial of a planned ablation what it is. ValueError: the search is no ablation."""
    plain = as_plain(config.base)
    search = config.search
    none = "is a search, not an ablation: use `metatrain search --resume`"
    require(search.trials == len(search.first) and search.trials > 0, none)
    found = []
    for trial in config.study_spec().initial_trials:
        seed = trial.get(SEED, config.base.seed)
        own = {name: _value_of(name, plain) for name in trial}
        changes = {name: value for name, value in trial.items() if name != SEED and not is_same(value, own[name])}
        found.append(Variant(changes, seed))
    require(not found[0].changes, none)
    return found
