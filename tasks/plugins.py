"""Things of the user's own, named in a configuration by import path: "package.module:Name"."""

import difflib
import importlib
import sysconfig
import traceback
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
"""What running somebody's code commonly raises. Whatever else it does is its own affair, and keeps its traceback."""

_OURS = tuple(str(Path(__file__).parents[1] / package) for package in ("tasks", "metatrain", "cluster"))
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_LONGEST = 240


def import_target(setting: str, target: str) -> Any:
    """The class or function that `target` names. ValueError, naming `setting`, the reason and the remedy, if none."""
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except USER_CODE_ERRORS as error:
        absent = isinstance(error, ModuleNotFoundError)
        remedy = "run from the folder that holds it, or put that on PYTHONPATH" if absent else "mend the module"
        raise ValueError(f"{setting}: cannot import '{module_name}' ({describe_error(error)}): {remedy}") from error
    found = getattr(module, name, None)
    if not callable(found):
        near = difflib.get_close_matches(name, [key for key, value in vars(module).items() if callable(value)], n=1)
        guess = f"did you mean '{near[0]}'?" if near else "name a class that it defines"
        raise ValueError(f"{setting}: '{module_name}' has no class '{name}': {guess}")
    return found


def describe_error(error: BaseException) -> str:
    """One line on what somebody's code raised: "KeyError: 'a' in mine.py, line 12"."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", *_OURS, *_INSTALLED))
    ]
    return f"{text} in {Path(theirs[-1].filename).name}, line {theirs[-1].lineno}" if theirs else text
