"""Check names that come out of a file, so that none leads out of the folder that it belongs to."""

from pathlib import Path

_LONGEST, _LONGEST_PART = 1024, 255
"""Bytes of a name, and of one folder or file in it, that every file system takes."""


def check_name(name: object, where: str) -> str:
    """Return `name`, a relative path with "/" between folders, as it is. where: the file it comes from, for messages.

    ValueError: it is absolute, has "..", ".", an empty part, a back slash, a drive's letter or an unprintable
    character, or is empty or too long.
    """
    if isinstance(name, str) and _is_inside(name):
        return name
    shown = ascii(name)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}…"
    raise ValueError(f"{where}: {shown} leads outside its folder, or can be no file's name: replace it by the original")


def resolve_within(folder: Path, name: object, where: str) -> Path:
    """Return the path of `name` in `folder`. ValueError: see `check_name`."""
    return folder / check_name(name, where)


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    letters = name.isprintable() and "\\" not in name
    short = len(name.encode()) <= _LONGEST and all(len(part.encode()) <= _LONGEST_PART for part in parts)
    drive = len(parts[0]) > 1 and parts[0][1] == ":" and parts[0][0].isalpha()
    return letters and short and not drive and not {"", ".", ".."} & set(parts)
