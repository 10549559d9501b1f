"""Read and write settings as YAML, apply `key=value` overrides, flatten to dotted keys.

Raise ValueError for what cannot be read, in one line: where, what is wrong, the remedy.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.composer import Composer

from metatrain.redact import mask
from tasks.io.files import read_document_text
from tasks.io.home import home_path

LONGEST = 100
"""Longest part of a user's value that a message repeats, in characters."""


_LARGEST = 2**18
"""Characters of a file or value."""
_MOST, _DEEPEST = 8_000, 50
"""Nodes, a repetition by an alias counting each time, and levels within each other."""
_LONGEST_NUMBER = 100
"""Characters of a number or date: some that are longer take minutes to read."""
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}
_KEY_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge")}


if yaml.__with_libyaml__:

    class _PlainLoader(Composer, yaml.CSafeLoader):
        """Have libyaml split the text, in a seventh of the time, and PyYAML compose and construct from that."""

        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)

else:
    _PlainLoader = yaml.SafeLoader  # type: ignore[misc, assignment]


class _Loader(_PlainLoader):
    """Read YAML 1.2 floats such as 1e-3, which PyYAML reads as strings; refuse duplicate keys, and what grows beyond
    all bounds when it is read.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0
        self._sizes: dict[int, int] = {}
        """Nodes of each whole node, by its id."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and count what is in it."""
        event = self.peek_event()
        assert event is not None, "composing stops at the end of the document"
        before, mark = self._nodes, event.start_mark
        self._depth += 1
        if self._depth > _DEEPEST:
            _refuse(f"nests more than {_DEEPEST} deep", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                _refuse(f"'*{event.anchor}' holds itself", mark)
            self._nodes += self._sizes[id(node)]
        else:
            self._nodes += 1
            self._sizes[id(node)] = self._nodes - before
            _check_tag(event, node)
        if self._nodes > _MOST:
            _refuse(f"holds more than {_MOST} values", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            _refuse("not a section", node.start_mark)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _KEY_TAGS:
                shown = f" '{key.value}'" if isinstance(key, yaml.ScalarNode) else ""
                _refuse(f"the key{shown} is no text: quote it", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_tag(event: yaml.Event, node: yaml.Node | None) -> None:
    """Refuse tags such as !!float, whose values may be anything, and numbers that are too long to be any."""
    tag = getattr(event, "tag", None)
    if tag not in (None, "!") and tag not in _PLAIN_TAGS:
        _refuse(f"'{tag}' is not read", event.start_mark)
    if isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS and len(node.value) > _LONGEST_NUMBER:
        _refuse(f"a number of {len(node.value)} characters", node.start_mark)


def _refuse(problem: str, mark: Any) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, mark)


class _Dumper(yaml.SafeDumper):
    """Quote strings that `_Loader` would read as numbers."""


_FLOAT = re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load_yaml(
    path: str | Path, wanted: str, begin: str = "tasks, model and algorithm, as configs/*.yaml do"
) -> dict[str, Any]:
    """Return the mapping in a YAML file. wanted, begin: what the file is and how it begins, for messages."""
    path = home_path(path)
    try:
        text = read_document_text(path)
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
    if len(text) > _LARGEST:
        raise ValueError(f"{where}: longer than {_LARGEST} characters: use a shorter configuration")
    try:
        return _copy(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        last = text.rstrip().count("\n")  # libyaml counts the end of the text as a line more
        line = f", line {min(mark.line, last) + 1}" if mark is not None else ""
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
        return {_copy(key): _copy(value) for key, value in tree.items()}
    if isinstance(tree, str):
        tree.encode()  # ValueError: half of a pair of surrogates, which no file and no terminal takes
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
    """Return the repr of a value, cut to fit a line, without passwords in it."""
    text = mask(repr(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def dump_yaml(tree: Any) -> str:
    """Return YAML that reads back to the same tree."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def dump_inline(value: Any) -> str:
    """Return YAML in one line, as in an override: 0.1, [1, 2], null."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.strip().removesuffix("...").strip()
