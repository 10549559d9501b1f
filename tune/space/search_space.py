"""Read a search space over the fields of a configuration, draw from it and apply its configurations.

    space:
      algorithm.inner_lr: loguniform(1e-3, 1)
      tasks.train.ways: int(5, 20)
      model: [{name: conv4}, {name: resnet12}]
      model.width:
        from: logint(16, 128)
        when: {model: {name: conv4}}

A list is a choice of its items. A parameter with `when` is active only if every parameter named there has the given
value, or one of a list of values; a section matches each option that has all of its settings. A parameter named in
`when` must be a choice or an integer of the space.

A configuration of the space is a flat dict, {"algorithm.inner_lr": 0.1, "model": {"name": "conv4"}, …}, which
`apply_configuration` puts into a whole one.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metatrain.validation import require
from metatrain.yaml_config import apply_overrides, shorten
from tasks.plugins import suggest_name
from tasks.random import stream, uniforms
from tune.space.distributions import DISTRIBUTIONS, Categorical, Distribution, Integer, Value, is_same

Configuration = dict[str, Value]

_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*\((.*)\)\s*", re.DOTALL)
_CONDITIONAL = {"from", "when"}


@dataclass(frozen=True)
class Parameter:
    """A field by its dotted name, its distribution, and its conditions, all of them: ((parameter, its values), …)."""

    name: str
    distribution: Distribution
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    def active(self, configuration: Mapping[str, Value]) -> bool:
        """Return whether it is active, given the values of the parameters before it."""
        return all(
            name in configuration and any(matches(configuration[name], value) for value in values)
            for name, values in self.when
        )


@dataclass(frozen=True)
class Space:
    """Parameters, each after those that it depends on, otherwise in the order of the file."""

    parameters: tuple[Parameter, ...]

    @property
    def conditional(self) -> bool:
        """Return whether any parameter may be inactive."""
        return any(parameter.when for parameter in self.parameters)

    def sample(self, seed: int, number: int, purpose: str = "suggest") -> Configuration:
        """Draw a configuration, a pure function of (seed, purpose, number)."""
        return self.complete({}, draw_uniforms(seed, purpose, number, len(self.parameters)))

    def complete(self, values: Mapping[str, Value], quantiles: Sequence[float]) -> Configuration:
        """Take `values` for the active parameters that have one, and draw the others at `quantiles`."""
        found: Configuration = {}
        for parameter, u in zip(self.parameters, quantiles, strict=True):
            if parameter.active(found):
                given = parameter.name in values
                found[parameter.name] = (
                    copy.deepcopy(values[parameter.name]) if given else parameter.distribution.value_at(u)
                )
        return found

    def contains(self, configuration: Mapping[str, Value]) -> bool:
        """Return whether each active parameter has a value of its distribution, and nothing else is given."""
        there = {parameter.name: parameter for parameter in self.parameters if parameter.active(configuration)}
        return there.keys() == configuration.keys() and all(
            parameter.distribution.contains(configuration[name]) for name, parameter in there.items()
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the plain mapping that `read_space` reads."""
        found: dict[str, Any] = {}
        for parameter in self.parameters:
            when = {name: copy.deepcopy(list(values)) for name, values in parameter.when}
            text = str(parameter.distribution)
            found[parameter.name] = {"from": text, "when": when} if when else text
        return found

    def mutate(self, configuration: Mapping[str, Value], seed: int, number: int) -> Configuration:
        """Return a copy with one parameter changed; what becomes active is drawn (Real et al. 2019)."""
        which, u, v, *rest = draw_uniforms(seed, "mutate", number, 3 + len(self.parameters))
        there = [parameter for parameter in self.parameters if parameter.name in configuration]
        chosen = there[int(which * len(there))]
        changed = {**configuration, chosen.name: chosen.distribution.mutate(configuration[chosen.name], u, v)}
        return self.complete(changed, rest)


def draw_uniforms(seed: int, purpose: str, number: int, count: int) -> list[float]:
    """Draw `count` uniform numbers of [0, 1) at the address (seed, purpose, number)."""
    found: list[float] = uniforms(seed, stream("search", purpose), [number], count)[0].tolist()
    return found


def apply_configuration(plain: Mapping[str, Any], configuration: Mapping[str, Value]) -> dict[str, Any]:
    """Put a configuration of the space into a whole plain one: sections first, so that `model.width` goes into the
    `model` that was chosen, which replaces the other whole.
    """
    result = copy.deepcopy(dict(plain))
    for name in sorted(configuration, key=lambda name: name.count(".")):
        *sections, last = name.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            require(isinstance(place, dict), f"{name}: '{section}' is a value, not a section: search over '{section}'")
        place[last] = copy.deepcopy(configuration[name])
    return result


def read_space(raw: Mapping[str, Any]) -> Space:
    """Parse a space from a plain mapping. ValueError: one line with the parameter, what is wrong, and the remedy."""
    require(
        isinstance(raw, Mapping),
        f"space: {shorten(raw)} is not a section: write parameters below it, field: distribution",
    )
    require(
        len(raw) > 0, "space: is empty: name a field and its distribution, such as outer.lr: loguniform(1e-4, 1e-2)"
    )
    parameters = {str(name): _read_parameter(str(name), written) for name, written in raw.items()}
    for parameter in parameters.values():
        for name, values in parameter.when:
            _check_condition(parameter.name, name, values, parameters)
    return Space(tuple(_sort_by_dependency(parameters)))


def _read_parameter(name: str, written: Any) -> Parameter:
    shaped = re.fullmatch(r"[^.\s]+(\.[^.\s]+)*", name) is not None
    require(shaped, f"space.{shorten(name)}: is not a field: name one by its sections, such as outer.lr")
    if not isinstance(written, Mapping):
        return Parameter(name, _read_distribution(name, written))
    complete = written.keys() == _CONDITIONAL and isinstance(written["when"], Mapping) and len(written["when"]) > 0
    form = "a distribution, or {from: distribution, when: {parameter: value}}"
    require(complete, f"space.{name}: {shorten(dict(written))} is neither: write {form}")
    when = tuple((str(key), _as_tuple(values)) for key, values in written["when"].items())
    return Parameter(name, _read_distribution(name, written["from"]), when)


def _as_tuple(values: Any) -> tuple[Value, ...]:
    return tuple(values) if isinstance(values, list) else (values,)


def _read_distribution(name: str, written: Any) -> Distribution:
    if isinstance(written, list):  # a list of options
        return _build(name, lambda: Categorical(tuple(written)))
    call = _CALL.fullmatch(written) if isinstance(written, str) else None
    known = ", ".join(f"{function}(…)" for function in DISTRIBUTIONS)
    if call is None:
        raise ValueError(f"space.{name}: {shorten(written)} is not a distribution: write a list, or one of {known}")
    function, text = call.groups()
    if function not in DISTRIBUTIONS:
        hint = suggest_name(function, DISTRIBUTIONS)
        raise ValueError(f"space.{name}: no function '{shorten(function)[1:-1]}'{hint}: write one of {known}")
    # The arguments are YAML: sections, words and 1e-3 mean what they do in a configuration.
    try:
        arguments = apply_overrides({}, [f"options=[{text}]"])["options"]
    except ValueError as error:
        raise ValueError(
            f"space.{name}: {shorten(written)} cannot be read: write its arguments as in a list"
        ) from error
    if function != "choice" and len(arguments) != 2:
        raise ValueError(f"space.{name}: {function} takes two bounds, not {len(arguments)}: give low and high")
    return _build(name, lambda: DISTRIBUTIONS[function](*arguments))


def _build(name: str, distribution: Callable[[], Distribution]) -> Distribution:
    try:
        return distribution()
    except ValueError as error:
        raise ValueError(f"space.{name}: {error}") from error


def _check_condition(name: str, on: str, values: tuple[Value, ...], parameters: Mapping[str, Parameter]) -> None:
    if on not in parameters:
        hint = suggest_name(on, parameters)
        raise ValueError(
            f"space.{name}.when: no parameter '{shorten(on)[1:-1]}' in this space{hint}: add it or remove the condition"
        )
    distribution = parameters[on].distribution
    if not isinstance(distribution, (Categorical, Integer)):
        raise ValueError(f"space.{name}.when: {on} is a real number, never one value: depend on a choice or an integer")
    require(len(values) > 0, f"space.{name}.when: no value of {on} is given: give one, or a list")
    for value in values:
        options = (
            distribution.options
            if isinstance(distribution, Categorical)
            else (value,)
            if distribution.contains(value)
            else ()
        )
        never = f"space.{name}.when: {on} is never {shorten(value)}: give a value of its distribution"
        require(any(matches(option, value) for option in options), never)


def _sort_by_dependency(parameters: Mapping[str, Parameter]) -> list[Parameter]:
    """Sort parameters after those that they depend on. ValueError: they depend on each other in a circle."""
    found: dict[str, Parameter] = {}
    while len(found) < len(parameters):
        waiting = [parameter for name, parameter in parameters.items() if name not in found]
        ready = [parameter for parameter in waiting if all(name in found for name, _ in parameter.when)]
        if not ready:
            circle = " and ".join(parameter.name for parameter in waiting)
            raise ValueError(f"space.{waiting[0].name}.when: {circle} depend on each other: remove one condition")
        found[ready[0].name] = ready[0]
    return list(found.values())


def matches(value: Value, wanted: Value) -> bool:
    """Return whether two values are the same, or the first is a section with all the settings of the second."""
    if isinstance(value, dict) and isinstance(wanted, dict):
        return all(key in value and is_same(value[key], wanted[key]) for key in wanted)
    return is_same(value, wanted)
