"""Derive the JSON schema of a configuration, for editors; named choices become alternatives.

The minimum of a number is found by trying values on the settings class.
"""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from metatrain.algorithms import ALGORITHMS
from metatrain.models.architectures import ARCHITECTURES
from metatrain.settings import SECTIONS, Config
from tasks.described_shape import DescribedShape
from tasks.environments.shape import EnvironmentShape
from tasks.ragged_shape import RaggedShape
from tasks.registry import TASK_SOURCES
from tasks.types import EpisodeShape


def json_schema() -> dict[str, Any]:
    """Return the schema as a plain dict, ready for JSON."""
    hints = get_type_hints(Config)
    episode = {"anyOf": [_of(shape, {}) for shape in (EpisodeShape, RaggedShape, DescribedShape, EnvironmentShape)]}
    place = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    properties: dict[str, Any] = {
        "initialize": place,
        "seed": {"type": "integer", "minimum": 0, "default": 0},
        "tasks": _choices(TASK_SOURCES, {"train": episode, "test": episode}),
        "model": _choices(ARCHITECTURES, {"weights": place}),
        "algorithm": _choices(ALGORITHMS, {}),
    }
    for name in SECTIONS:
        if name not in properties:
            properties[name] = _of(hints[name], {})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "metatrain configuration",
        "type": "object",
        "required": ["tasks", "model", "algorithm"],
        "properties": properties,
        "additionalProperties": False,
    }


def _of(cls: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    schema = TypeAdapter(cls).json_schema()
    schema.pop("$defs", None)  # sections by name, written out below: a reference would point past the whole
    properties = schema.get("properties", {})
    for name, kind in get_type_hints(cls).items():
        if get_origin(kind) is dict and is_dataclass(get_args(kind)[-1]):
            properties[name]["additionalProperties"] = _of(get_args(kind)[-1], {})
        elif is_dataclass(kind):
            written = {key: value for key, value in properties[name].items() if key != "$ref"}
            properties[name] = _of(kind, {}) | written
        elif sections := [one for one in get_args(kind) if is_dataclass(one)]:
            plain = [one for one in properties[name]["anyOf"] if "$ref" not in one]
            properties[name]["anyOf"] = [*plain, *(_of(section, {}) for section in sections)]
    for name, described in properties.items():
        for kind in (described, *described.get("anyOf", ())):
            if kind.get("type") in ("integer", "number"):
                kind |= _least(cls, name, whole=kind["type"] == "integer")
    schema["properties"] = {**extra, **properties}
    return {**schema, "additionalProperties": False}


def _choices(known: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    own = {"properties": {"name": {"type": "string", "pattern": ":"}, **extra}, "required": ["name"]}
    ours = [_of(cls, {"name": {"const": name}, **extra}) | {"required": ["name"]} for name, cls in known.items()]
    return {"type": "object", "anyOf": [*ours, own]}


def _least(cls: Any, name: str, whole: bool) -> dict[str, Any]:
    """Return {"minimum": n} where n - 1 is refused and n is not; {"exclusiveMinimum": 0} for a positive number."""
    taken = {value: _takes(cls, name, value) for value in (-1, 0, 1, 2)}
    if taken[-1] or not any(taken.values()):
        return {}
    least = min(value for value, takes in taken.items() if takes)
    return {"minimum": least} if whole or least == 0 else {"exclusiveMinimum": least - 1}


def _takes(cls: Any, name: str, value: int) -> bool:
    try:
        cls(**{name: value})
    except ValueError:
        return False
    return True
