"""Read the configurations that a search begins with: `search.first: [base, {outer.lr: 0.01}]`, each over the base."""

from collections.abc import Mapping
from typing import Any

from metatrain.validation import require
from metatrain.yaml_config import shorten
from tasks.plugins import suggest_name
from tune.space.distributions import Categorical, Distribution, Value
from tune.space.search_space import Configuration, Parameter, Space, apply_configuration, matches

_NONE = object()


def read_initial_trial(given: Mapping[str, Value], space: Space, base: Mapping[str, Any]) -> Configuration:
    """Return the configuration of `space` with the values `given`, and otherwise those of the plain configuration
    `base`.

    ValueError: a value is missing, is not of its distribution, or belongs to no active parameter.
    """
    known = [parameter.name for parameter in space.parameters]
    for name in given:
        hint = suggest_name(str(name), known)
        unknown = f"search.first: no parameter {shorten(name)} in this space{hint}: it has {', '.join(known)}"
        require(name in known, unknown)
    found: Configuration = {}
    for parameter in space.parameters:
        if parameter.active(found):
            # A given section replaces the base's whole: none of the base's values belongs to it.
            own = apply_configuration(base, {name: value for name, value in found.items() if name in given})
            found[parameter.name] = _read_value(parameter, given, own)
    for name in given:
        absent = f"search.first: {name} is inactive with the other values ({shorten(found)}): remove it"
        require(name in found, absent)
    return found


def _read_value(parameter: Parameter, given: Mapping[str, Value], plain: Mapping[str, Any]) -> Value:
    """Read one parameter's value. plain: the base with the given values of the parameters before this one."""
    name, distribution = parameter.name, parameter.distribution
    if name in given:
        value = _match_value(distribution, given[name])
        require(
            value is not _NONE,
            f"search.first: {name}: {shorten(given[name])} is not of {distribution}: give one that is",
        )
        return value
    own: Any = plain
    for section in name.split("."):
        own = own.get(section, _NONE) if isinstance(own, Mapping) else _NONE
    require(own is not _NONE, f"search.first: {name} has no value in the configuration: give one")
    value = _match_value(distribution, own)
    outside = (
        f"search.first: {name} is {shorten(own)} in the configuration, not of {distribution}: give a value, or widen it"
    )
    require(value is not _NONE, outside)
    return value


def _match_value(distribution: Distribution, value: Value) -> Value:
    """Return a value as the distribution has it, a section as the option whose settings it has; _NONE: it has none."""
    if isinstance(distribution, Categorical):
        return next((option for option in distribution.options if matches(value, option)), _NONE)
    return value if distribution.contains(value) else _NONE
