"""Read and write settings as YAML, apply `key=value` overrides, flatten to dotted keys.

Raise ValueError for what cannot be read, in one line: where, what is wrong, the remedy.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.io.home import home_path

LONGEST = 100
"""Longest part of a user's value that a message repeats, in characters."""


class _Loader(yaml.SafeLoader):
    """Read YAML 1.2 floats such as 1e-3, which PyYAML reads as strings; refuse duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quote strings that `_Loader` would read as numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def load_yaml(
    path: str | Path, wanted: str, begin: str = "tasks, model and algorithm, as configs/*.yaml do"
) -> dict[str, Any]:
    """Return the mapping in a YAML file. wanted, begin: what the file is and how it begins, for messages."""
    path = home_path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: use the path of {wanted}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error.reason}): use a YAML file") from error
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict) or not raw:
        raise ValueError(f"{path}: holds no settings: begin with {begin}")
    return raw


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML; `where` it stands is for messages."""
    try:
        return _copy(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{where}{line}: not YAML ({problem[:LONGEST]}): fix that line") from error
    except ValueError as error:  # a date in a thirteenth month, a number of 5000 digits
        raise ValueError(f"{where}: not YAML ({str(error)[:LONGEST]}): fix that value") from error
    except RecursionError as error:
        raise ValueError(f"{where}: nests too deeply, or holds itself: write it plainly") from error


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `raw` with each override "a.b=value" set."""
    result: dict[str, Any] = _copy(raw)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"{shorten(override)}: is no setting: write key=value, such as outer.lr=1e-3")
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"{key}: '{section}' is a value, not a section: see `metatrain config show`")
        place[last] = parse_yaml(value, key)
    return result


def _copy(tree: Any) -> Any:
    """Copy a tree without shared parts. Raise RecursionError for one that contains itself through YAML aliases."""
    if isinstance(tree, Mapping):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"outer.lr": 1e-3, …}: the keys of overrides, searches and MLflow parameters."""
    result: dict[str, Any] = {}
    for key, value in plain.items():
        result |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return result


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys, sorted, that one of two plain mappings lacks or that differ between them."""
    before, after = flatten(old), flatten(new)
    return sorted(
        key
        for key in before.keys() | after.keys()
        if key not in before or key not in after or before[key] != after[key]
    )


def shorten(value: Any) -> str:
    """Return the repr of a value, cut to fit a line."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def dump_yaml(tree: Any) -> str:
    """Return YAML that reads back to the same tree."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def dump_inline(value: Any) -> str:
    """Return YAML in one line, as in an override: 0.1, [1, 2], null."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.strip().removesuffix("...").strip()
