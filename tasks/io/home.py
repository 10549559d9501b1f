"""Replace a leading `~` in paths: one function, for every path in settings, arguments and environment variables.

Relative paths are relative to the folder that the process was started in.
"""

import os
import re
from pathlib import Path
from typing import Annotated

_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(~.*)")


class ExpandsHome:
    """Mark a setting as a path (`PathText`): whoever reads settings replaces a leading `~` in it."""


PathText = Annotated[str, ExpandsHome]
"""The type of a setting that is a path, or a URI."""


def expand_home(path: str | os.PathLike[str]) -> str:
    """Replace a leading `~` or `~NAME` by that home folder, also in sqlite:///~/FILE; leave all else as it is.

    ValueError: there is no such home. A folder that is called `~` is written `./~`.
    """
    text = os.fspath(path)
    if database := _SQLITE.fullmatch(text):
        return database[1] + expand_home(database[2])
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)  # noqa: PTH111 a Path drops what may be a URI's slash
    if expanded.startswith("~"):
        name = text.partition("/")[0]
        raise ValueError(f"'{text}': there is no home '{name}': use a full path, or './{name}' for a folder here")
    return expanded


def home_path(path: str | os.PathLike[str]) -> Path:
    """Return `expand_home` as a Path."""
    return Path(expand_home(path))
