"""What a search is told to begin with: `search.first: [base, {outer.lr: 0.01}]`, each over the base's own values."""

from collections.abc import Mapping
from typing import Any

from metatrain.validation import require, suggest_name
from metatrain.yaml_config import short
from tune.space.distributions import Categorical, Distribution, Value
from tune.space.search_space import Configuration, Parameter, Space, apply_configuration, matches

_NONE = object()


def read_initial_trial(given: Mapping[str, Value], space: Space, base: Mapping[str, Any]) -> Configuration:
    """The configuration of `space` that has the values `given`, and else those of the plain configuration `base`.

    ValueError: one line, where a value is missing, is none of its domain, or belongs to no parameter that is there.
    """
    known = [parameter.name for parameter in space.parameters]
    for name in given:
        hint = suggest_name(str(name), known)
        unknown = f"search.first: no parameter {short(name)} in this space{hint}: it has {', '.join(known)}"
        require(name in known, unknown)
    found: Configuration = {}
    for parameter in space.parameters:
        if parameter.active(found):
            # Of a section that is given nothing of the base's stays, and so none of its values is the other's own.
            own = apply_configuration(base, {name: value for name, value in found.items() if name in given})
            found[parameter.name] = _value(parameter, given, own)
    for name in given:
        absent = f"search.first: {name} is not there with the other values ({short(found)}): leave it out"
        require(name in found, absent)
    return found


def _value(parameter: Parameter, given: Mapping[str, Value], plain: Mapping[str, Any]) -> Value:
    """`plain`: the base, with what was given for the parameters before this one over it."""
    name, distribution = parameter.name, parameter.distribution
    if name in given:
        value = _within(distribution, given[name])
        require(
            value is not _NONE, f"search.first: {name}: {short(given[name])} is not of {distribution}: give one that is"
        )
        return value
    own: Any = plain
    for section in name.split("."):
        own = own.get(section, _NONE) if isinstance(own, Mapping) else _NONE
    require(own is not _NONE, f"search.first: {name} has no value in the configuration: give one")
    value = _within(distribution, own)
    outside = (
        f"search.first: {name} is {short(own)} in the configuration, not of {distribution}: give a value, or widen it"
    )
    require(value is not _NONE, outside)
    return value


def _within(distribution: Distribution, value: Value) -> Value:
    """A value as the domain has it: a section as the option whose settings it has."""
    if isinstance(distribution, Categorical):
        return next((option for option in distribution.options if matches(value, option)), _NONE)
    return value if distribution.contains(value) else _NONE
