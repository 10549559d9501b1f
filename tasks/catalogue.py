"""From names to task sources: those we ship, and a user's own by import path."""

import dataclasses
import difflib
import importlib
from typing import Any

from tasks.omniglot import Omniglot
from tasks.strokes import Strokes

CATALOGUE: dict[str, type[Any]] = {"omniglot": Omniglot, "strokes": Strokes}

_METHODS = ("prepare", "distribution")


def source_type(name: str) -> type[Any]:
    """The TaskSource class called `name`: a key of CATALOGUE, or "package.module:ClassName".

    Raises ValueError, with the remedy, for a name that leads to none.
    """
    if ":" in name:
        return _imported(name)
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=1)
        guess = f"did you mean '{near[0]}'? " if near else ""
        known = ", ".join(sorted(CATALOGUE))
        raise ValueError(f"no tasks are called '{name}': {guess}there are {known}, or your own as package.module:Class")
    return CATALOGUE[name]


def _imported(name: str) -> type[Any]:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module runs here, and may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "run from the folder that holds it, or put that folder on PYTHONPATH"
        remedy = hint if isinstance(error, ModuleNotFoundError) else "mend the module"
        raise ValueError(f"cannot import '{module_name}' for tasks '{name}' ({reason}): {remedy}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        near = difflib.get_close_matches(class_name, classes, n=1)
        guess = f": did you mean '{near[0]}'?" if near else ": name a class that it defines"
        raise ValueError(f"'{module_name}' has no class '{class_name}'{guess}")
    if not dataclasses.is_dataclass(found):
        raise ValueError(f"'{name}' is not a dataclass: mark it @dataclass(frozen=True), its fields being settings")
    lacking = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if lacking:
        raise ValueError(f"'{name}' lacks {' and '.join(lacking)}: give it the methods of tasks.types.TaskSource")
    return found
