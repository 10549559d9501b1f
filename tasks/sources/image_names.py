"""Know the names in folders of images: suffixes of images, the usual names of splits; group files by class."""

from collections.abc import Iterable, Mapping, Sequence

from tasks.types import Split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")

SPLIT_OF: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""The split that a folder, a table or a list belongs to, by its name in small letters."""

Classes = Mapping[str, Sequence[str]]
"""The files of each class, by its name."""
Splits = Mapping[Split, Sequence[str]]
"""The names of each split's classes."""


def is_image(name: str) -> bool:
    """Return whether a file is an image, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def group_files(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the sorted files of each class from pairs (class, file)."""
    groups: dict[str, set[str]] = {}
    for name, file in pairs:
        groups.setdefault(name, set()).add(file)
    return {name: sorted(files) for name, files in groups.items()}
