"""Read JSON that a stranger may have written: bounded in size and depth, every value of the type that is expected."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from tasks.io.files import LARGEST, read_document

DEEPEST = 100
"""Levels of lists and objects within each other; what is deeper could exceed Python's stack wherever it is read."""
MOST = 2**53
"""The largest whole number that JSON keeps exactly: steps, sizes and counts stay below."""
_WORDS: dict[Any, str] = {
    float: "number",
    int: "whole number",
    str: "text",
    bool: "true or false",
    list: "list",
    dict: "object",
    type(None): "null",
}


def read_json(path: Path, remedy: str, limit: int = LARGEST) -> Any:
    """Read a file that holds one JSON value. ValueError: see `parse_json`. OSError: it cannot be read."""
    return parse_json(read_document(path, limit), str(path), remedy)


def parse_json(text: str | bytes, where: str, remedy: str) -> Any:
    """Parse one JSON value. ValueError, with `where` and `remedy`: it is none, or nests too deeply."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # ValueError: half of a pair of surrogates
        deep = text.count("[") + text.count("{") > DEEPEST and _is_deeper(value, DEEPEST)
    except RecursionError:
        deep = True
    except ValueError as error:  # also of text that is not UTF-8, and of a number of 5000 digits
        raise ValueError(f"{where}: not JSON: {remedy}") from error
    if deep:
        raise ValueError(f"{where}: nests more than {DEEPEST} deep: {remedy}")
    return value


def check_json(value: object, kind: Any, where: str, remedy: str) -> Any:
    """Return `value` after checking that it is of `kind`.

    kind: bool, int (of at most `MOST`), float (any number, nan and infinity too), str, None, Any, list[…],
    dict[str, …], a union, a Literal, or a TypedDict, whose other keys are free. ValueError: where, which part is
    wrong, the remedy.
    """
    wrong = _find_wrong(value, kind, "")
    if wrong is not None:
        raise ValueError(f"{where}: {wrong}: {remedy}")
    return value


def _is_deeper(value: Any, most: int) -> bool:
    """Return whether lists and objects nest more than `most` deep."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for one in level
            if isinstance(one, (list, dict))
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return False
    return True


def _find_wrong(value: Any, kind: Any, place: str) -> str | None:
    """Return what is wrong with `value`, in a phrase that begins with its place; None where it is of `kind`."""
    origin = get_origin(kind)
    if kind is Any:
        return None
    if origin in (Union, UnionType):
        found = [_find_wrong(value, one, place) for one in get_args(kind)]
        return None if None in found else max((one for one in found if one is not None), key=len)
    if origin is Literal:
        return None if value in get_args(kind) and isinstance(value, str) else f"{_name(place)} has none of its values"
    if is_typeddict(kind):
        return _find_wrong_key(value, kind, place)
    if origin is list:
        if not isinstance(value, list):
            return _is_no(place, list)
        return _first(_find_wrong(one, get_args(kind)[0], f"{place}[{number}]") for number, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            return _is_no(place, dict)
        return _first(_find_wrong(one, get_args(kind)[1], _join(place, key)) for key, one in value.items())
    return None if _is_plain(value, type(None) if kind is None else kind) else _is_no(place, kind)


def _find_wrong_key(value: Any, kind: Any, place: str) -> str | None:
    if not isinstance(value, Mapping):
        return _is_no(place, dict)
    missing = sorted(kind.__required_keys__ - value.keys())
    if missing:
        return f"{_name(_join(place, missing[0]))} is missing"
    hints = _hints(kind)
    return _first(_find_wrong(value[key], hints[key], _join(place, key)) for key in hints if key in value)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a TypedDict's keys, resolved once: a store's header has an object for each class."""
    return get_type_hints(kind)


def _is_plain(value: object, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_huge(value)
    if kind is int:
        return type(value) is int and not _is_huge(value)
    return isinstance(value, kind)


def _is_huge(value: int | float) -> bool:
    return isinstance(value, int) and abs(value) > MOST


def _first(found: Iterable[str | None]) -> str | None:
    return next((one for one in found if one is not None), None)


def _is_no(place: str, kind: Any) -> str:
    return f"{_name(place)} is no {_WORDS[type(None) if kind is None else kind]}"


def _join(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _name(place: str) -> str:
    """Return a place for people: quoted, cut, and without unprintable characters."""
    return ascii(place if len(place) <= 100 else f"{place[:100]}…") if place else "it"
