"""Read the text files in which datasets list their images, classes and attributes, and say which line is wrong."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.sources.image_names import Classes, is_image
from tasks.store.archive import OpenArchive
from tasks.text import count_of, decode_text, enumerate_few

_COMPLETE = "replace it by a complete copy"


class DatasetFiles:
    """The files of a dataset below the folder in which it was unpacked, wherever that lies in an archive.

    Names are relative to that folder. where: the archive, for messages.
    """

    def __init__(self, where: str, contents: OpenArchive, marker: str, forms: str) -> None:
        """Find the folder by `marker`, a file in it. ValueError: there is none. forms: the expected layout."""
        found = [name for name in contents.names if name == marker or name.endswith(f"/{marker}")]
        if not found:
            raise ValueError(f"{where} has no {marker}: set tasks.root to a folder or a zip with {forms}")
        self.where = where
        self.base = min(found, key=lambda name: (name.count("/"), name)).removesuffix(marker)
        self._contents = contents
        self._names = frozenset(contents.names)

    def below(self, folder: str) -> list[str]:
        """Return the full names of all files in a folder and the folders in it."""
        return [name for name in self._contents.names if name.startswith(f"{self.base}{folder}")]

    def read(self, name: str) -> bytes:
        """Return the content of a file. ValueError: it is missing, or damaged."""
        if f"{self.base}{name}" not in self._names:
            raise ValueError(f"{self.where} has no {self.base}{name}: {_COMPLETE}")
        return self._contents.read(f"{self.base}{name}")

    def words(self, name: str, count: int, last_is_text: bool = True) -> list[list[str]]:
        """Return the first `count` words of each line that is not empty; the last has the rest if that is a text.

        ValueError: the file is missing, or a line has fewer words (or more, where the last is no text).
        """
        lines = decode_text(f"{self.where}: {name}", self.read(name)).splitlines()
        found = []
        for number, line in enumerate(lines, start=1):
            parts = line.strip().split(None, count - 1 if last_is_text else -1)
            if parts and len(parts) != count:
                raise ValueError(f"{self.where}: {name}, line {number}: not {count_of(count, 'word')}: {_COMPLETE}")
            if parts:
                found.append([part.strip() for part in parts])
        if not found:
            raise ValueError(f"{self.where}: {name} is empty: {_COMPLETE}")
        return found

    def table(self, name: str) -> dict[str, str]:
        """Return the lines KEY VALUE of a file. ValueError: as in `words`, or a key is there twice."""
        pairs = self.words(name, 2)
        found = {pair[0]: pair[1] for pair in pairs}
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{self.where}: {name} lists '{twice}' twice: {_COMPLETE}")
        return found

    def matrix(self, name: str, rows: int) -> NDArray[np.float32]:
        """Return the numbers of a file [rows, columns]. ValueError: they are not so many, or no finite numbers."""
        lines = decode_text(f"{self.where}: {name}", self.read(name)).split("\n")
        numbers = [line.split() for line in lines if line.strip()]
        sizes = {len(row) for row in numbers}
        if len(numbers) != rows or len(sizes) != 1:
            found = f"{count_of(len(numbers), 'row')} of {enumerate_few([str(size) for size in sorted(sizes)])} numbers"
            raise ValueError(f"{self.where}: {name} has {found}, for {count_of(rows, 'class', 'classes')}: {_COMPLETE}")
        try:
            found_values = np.array(numbers, dtype=np.float32)
        except ValueError as error:
            raise ValueError(f"{self.where}: {name} has something else than numbers ({error}): {_COMPLETE}") from error
        if not np.isfinite(found_values).all():
            raise ValueError(f"{self.where}: {name} has numbers that are not finite: {_COMPLETE}")
        return found_values

    def look_up(self, table: Mapping[str, str], name: str, key: str) -> str:
        """Return the entry of a key in the table of a file. ValueError: it has none."""
        if key not in table:
            raise ValueError(f"{self.where}: {name} has no line for '{key}': {_COMPLETE}")
        return table[key]

    def require(self, classes: Classes, listed_in: str) -> None:
        """Check that all files of classes are there. ValueError: some are missing."""
        missing = [file for files in classes.values() for file in files if file not in self._names]
        if missing:
            reason = f"lists {count_of(len(missing), 'image')} that {'is' if len(missing) == 1 else 'are'} missing"
            raise ValueError(f"{self.where}: {listed_in} {reason} ({enumerate_few(missing)}): {_COMPLETE}")

    def describe_unlisted(self, folder: str, classes: Classes, listed_in: str) -> tuple[str, ...]:
        """Describe the images in a folder that belong to no class."""
        listed = {file for files in classes.values() for file in files}
        others = [name for name in self.below(folder) if is_image(name) and name not in listed]
        if not others:
            return ()
        return (f"{count_of(len(others), 'image')} that {listed_in} does not list: {enumerate_few(others)}",)


def parse_numbers(where: str, texts: Sequence[str]) -> list[float]:
    """Return finite numbers from texts. ValueError, with `where`: some are none."""
    try:
        found = [float(text) for text in texts]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{where}: {' '.join(texts)!r} are no numbers: {_COMPLETE}")
    return found
