"""Read a section of a configuration into the settings dataclass that it describes, every value checked by its type."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from metatrain.yaml_config import LONGEST, shorten
from tasks.io.home import ExpandsHome, expand_home
from tasks.plugins import USER_CODE_ERRORS, describe_error, suggest_name

_LOCATION = re.compile(r"tasks\.(sources\.[^.]+\.)?(root|cache)")
"""Settings that say where the data lies, which may have moved; also of the sources of a mixture."""


def section_of(raw: Mapping[str, Any], name: str, within: str = "") -> dict[str, Any]:
    """Return a copy of the section `name`. ValueError: it is a single value."""
    section = raw[name]
    if not isinstance(section, dict):
        raise ValueError(f"{within}{name}: {shorten(section)} is not a section: write its settings below it")
    return dict(section)


def read_settings(cls: Any, section: Mapping[str, Any], where: str, also: Sequence[str] = ()) -> Any:
    """Build the settings dataclass `cls` from a section, every value checked against its field's type."""
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    refuse_unknown(section, [*known, *also], where)
    try:
        hints = get_type_hints(cls, include_extras=True)
    except USER_CODE_ERRORS as error:
        raise ValueError(
            f"{where}.name: {cls.__name__} has unresolved annotations ({describe_error(error)}): fix them"
        ) from error
    values = {key: read_value(hints[key], value, f"{where}.{key}") for key, value in section.items()}
    try:
        return cls(**values)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where}.{text}") from error
    except USER_CODE_ERRORS as error:  # of a class of the user's own, which may want what is not given
        raise ValueError(
            f"{where}: {cls.__name__} cannot be built from these settings ({describe_error(error)}): fix the settings "
            "or the class"
        ) from error


def read_value(kind: Any, value: Any, where: str) -> Any:
    """Read one setting: a value, a list where a tuple is meant (YAML has no tuples), or sections by name."""
    kinds = [kind, *get_args(kind)]
    if isinstance(value, str) and (is_path(kind) or is_location(where)):
        value = _expanded(value, where)
    if isinstance(value, list) and any(get_origin(one) is tuple for one in kinds):
        value = tuple(value)
    section = next((one for one in kinds if dataclasses.is_dataclass(one)), None)
    if section is not None and get_origin(kind) is not dict and isinstance(value, dict):
        return read_settings(section, value, where)
    if get_origin(kind) is dict and dataclasses.is_dataclass(kinds[-1]) and isinstance(value, dict):
        names = [checked(str, name, where) for name in value]
        return {
            name: read_settings(kinds[-1], section_of(value, name, f"{where}."), f"{where}.{name}") for name in names
        }
    return checked(kind, value, where)


def is_location(key: str) -> bool:
    """Return whether a setting says where the data lies."""
    return _LOCATION.fullmatch(key) is not None


def is_path(kind: Any) -> bool:
    """Return whether a setting of this type is a path (`PathText`)."""
    return any(ExpandsHome in getattr(one, "__metadata__", ()) for one in (kind, *get_args(kind)))


def _expanded(path: str, where: str) -> str:
    try:
        return expand_home(path)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return an adapter, kept for further values: making one takes most of the time of reading a configuration."""
    try:
        return _kept_adapter(kind)
    except TypeError:  # an annotation of a user's own that has no hash
        return TypeAdapter(kind)


_kept_adapter = lru_cache(256)(TypeAdapter)


def checked(kind: Any, value: Any, where: str) -> Any:
    """Return a value of type `kind`. ValueError: it is of another, and is not converted."""
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        found, *others = error.errors()
        problem = "should be a list, such as [1, 2]" if found["type"] == "sequence_str" else found["msg"]
        problem += "".join(f" or {one['ctx']['expected']}" for one in others if one["type"] == "literal_error")
        raise ValueError(f"{where}: {problem[0].lower()}{problem[1:]}, not {shorten(value)}") from error
    except (OverflowError, PydanticUserError) as error:
        raise ValueError(f"{where}: cannot be read ({str(error).splitlines()[0]}): set another value") from error


def refuse_unknown(section: Mapping[str, Any], known: Any, where: str) -> None:
    """Check that a section has no keys but `known` ones. ValueError: it has; the most similar one is named."""
    for key in section:
        if key not in known:
            written = str(key)[:LONGEST]
            path = f"{where}.{written}" if where else written
            remedy = f"it may be {', '.join(sorted(known))}" if known else "there are none here, remove it"
            raise ValueError(f"{path}: no such setting{suggest_name(written, known)}: {remedy}")
