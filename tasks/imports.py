"""Things of the user's own, named in a configuration by import path: "package.module:Name"."""

import difflib
import importlib
from typing import Any

# What running somebody's module commonly raises. Whatever else it does is its own affair, and keeps its traceback.
_FAILURES = (
    ImportError,
    SyntaxError,
    NameError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    OSError,
)


def import_target(setting: str, target: str) -> Any:
    """The class or function that `target` names. ValueError, naming `setting`, the reason and the remedy, if none."""
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except _FAILURES as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        absent = isinstance(error, ModuleNotFoundError)
        remedy = "run from the folder that holds it, or put that on PYTHONPATH" if absent else "mend the module"
        raise ValueError(f"{setting}: cannot import '{module_name}' ({reason}): {remedy}") from error
    found = getattr(module, name, None)
    if not callable(found):
        near = difflib.get_close_matches(name, [key for key, value in vars(module).items() if callable(value)], n=1)
        guess = f"did you mean '{near[0]}'?" if near else "name a class that it defines"
        raise ValueError(f"{setting}: '{module_name}' has no class '{name}': {guess}")
    return found
