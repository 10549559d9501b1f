"""From names to task sources: those we ship, and a user's own by import path."""

import dataclasses
import difflib
from typing import Any

from tasks.plugins import import_target
from tasks.sources.image_folder import ImageFolder
from tasks.sources.mini_imagenet import MiniImageNet
from tasks.sources.omniglot import Omniglot
from tasks.sources.sinusoid import Sinusoid
from tasks.sources.strokes import Strokes

TASK_SOURCES: dict[str, type[Any]] = {
    "image_folder": ImageFolder,
    "mini_imagenet": MiniImageNet,
    "omniglot": Omniglot,
    "sinusoid": Sinusoid,
    "strokes": Strokes,
}

_METHODS = ("prepare", "distribution")


def resolve_task_source(name: str) -> type[Any]:
    """The TaskSource class called `name`: a key of TASK_SOURCES, or "package.module:ClassName".

    Raises ValueError, with the remedy, for a name that leads to none.
    """
    if ":" in name:
        return _imported(name)
    if name not in TASK_SOURCES:
        near = difflib.get_close_matches(name, TASK_SOURCES, n=1)
        guess = f"did you mean '{near[0]}'? " if near else ""
        known = ", ".join(sorted(TASK_SOURCES))
        raise ValueError(f"no tasks are called '{name}': {guess}there are {known}, or your own as package.module:Class")
    return TASK_SOURCES[name]


def _imported(name: str) -> type[Any]:
    found = import_target("tasks.name", name)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"tasks.name: '{name}' is not a dataclass: mark it @dataclass(frozen=True)")
    lacking = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if lacking:
        raise ValueError(
            f"tasks.name: '{name}' lacks {' and '.join(lacking)}: give it the methods of tasks.types.TaskSource"
        )
    return found
