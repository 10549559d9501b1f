"""Import a user's own classes, which a configuration names as "package.module:Name"; describe errors of their code."""

import difflib
import importlib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

USER_CODE_ERRORS = (
    ImportError,
    SyntaxError,
    NameError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    OSError,
)
"""Errors of a user's code that are reported as one line; any other keeps its traceback."""

_OURS = tuple(str(Path(__file__).parents[1] / package) for package in ("tasks", "metatrain", "cluster"))
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_MAX_LENGTH = 240


def import_target(setting: str, target: str) -> Any:
    """Import the class or function that `target` names. ValueError, which names `setting`: there is none."""
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except USER_CODE_ERRORS as error:
        absent = isinstance(error, ModuleNotFoundError)
        remedy = "run from the folder that holds it, or add that to PYTHONPATH" if absent else "fix the module"
        raise ValueError(f"{setting}: cannot import '{module_name}' ({describe_error(error)}): {remedy}") from error
    found = getattr(module, name, None)
    if not callable(found):
        guess = suggest_name(name, [key for key, value in vars(module).items() if callable(value)])
        raise ValueError(f"{setting}: '{module_name}' has no class '{name}'{guess}: name a class that it defines")
    return found


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the known name that is most like `name`; "" where none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def describe_error(error: BaseException) -> str:
    """Return one line on an error of a user's code: "KeyError: 'a' in mine.py, line 12"."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"
    user_frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", *_OURS, *_INSTALLED))
    ]
    return f"{text} in {Path(user_frames[-1].filename).name}, line {user_frames[-1].lineno}" if user_frames else text
