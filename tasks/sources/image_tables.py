"""Read tables of images and their labels, labels.csv or train.csv, val.csv and test.csv, with any usual separator and
columns.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from tasks.sources.image_names import SPLIT_OF, SUFFIXES
from tasks.store.archive import OpenArchive
from tasks.text import decode_text
from tasks.types import Split

FILE_COLUMNS = ("filename", "file_name", "file", "image", "image_name", "img", "path", "filepath", "file_path")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "classname", "category", "target")
_SEPARATORS = ",;\t|"


class LabelledFile(NamedTuple):
    """One row of a table. line: where it stands there, for messages."""

    file: str
    label: str
    split: Split
    table: str
    line: int


class _Columns(NamedTuple):
    """Where a table has file names and labels, what separates them, and whether the first row names them.

    repeated: a name that two of its columns have, of which one would have to be guessed.
    """

    separator: str
    file: int
    label: int
    header: bool
    repeated: str = ""


def find_tables(names: Iterable[str]) -> dict[Split, str]:
    """Return the outermost train.csv, val.csv and test.csv, or those that exist, under any usual name of a split."""
    found: dict[Split, str] = {}
    for name in sorted(names, key=lambda name: (name.count("/"), name), reverse=True):
        stem, dot, suffix = name.rpartition("/")[2].lower().partition(".")
        if dot and suffix in ("csv", "tsv") and stem in SPLIT_OF:
            found[SPLIT_OF[stem]] = name
    return found


def find_whole_table(names: Iterable[str]) -> str | None:
    """Return the outermost labels.csv, which lists images of all classes in one place; None where there is none."""
    found = (name for name in names if name.rpartition("/")[2].lower() in ("labels.csv", "labels.tsv"))
    return min(found, key=lambda name: (name.count("/"), name), default=None)


def is_table(contents: OpenArchive, table: str) -> bool:
    """Return whether a table has columns of files and labels that are understood."""
    try:
        return _find_columns(_read_text(contents, table)) is not None
    except ValueError:
        return False


def read_table(where: str, contents: OpenArchive, table: str, split: Split) -> list[LabelledFile]:
    """Read the rows of a table, its files in images/ beside it, or beside it. Back slashes separate folders too.

    ValueError, which names the line: a cell is missing, or a file.
    """
    text = _read_text(contents, table)
    columns = _find_columns(text)
    if columns is None:
        raise ValueError(f"{where}: {table} {_describe_first_line(text)}")
    if columns.repeated:
        raise ValueError(f"{where}: {table} has several columns '{columns.repeated}': rename or remove all but one")
    names, folder = set(contents.names), table.rpartition("/")[0]
    found = []
    rows = _rows(where, table, text, columns.separator)
    if columns.header:
        next(rows, None)
    for line, row in rows:
        cells = [row[at].strip() if at < len(row) else "" for at in (columns.file, columns.label)]
        if not all(cells):
            raise ValueError(f"{where}: {table}, line {line} lacks a filename or a label: fix it")
        file = _find_file(cells[0], folder, names)
        if file is None:
            place = f"{folder}/images".lstrip("/")
            raise ValueError(f"{where}: {table} lists {cells[0]}, which is not in {place}/: add it")
        found.append(LabelledFile(file, cells[1], split, table, line))
    if not found:
        raise ValueError(f"{where}: {table} has no rows of filename,label: replace it by a complete copy")
    return found


def tell_rows_apart(where: str, rows: Sequence[LabelledFile]) -> int:
    """Return how many rows only repeat another. ValueError: a file has two labels, or is in two splits."""
    first: dict[str, LabelledFile] = {}
    repeated = 0
    for row in rows:
        known = first.setdefault(row.file, row)
        if known is row:
            continue
        if (known.label, known.split) == (row.label, row.split):
            repeated += 1
            continue
        both = " and ".join(f"{one.table}, line {one.line} (as {one.label!r})" for one in (known, row))
        reason = f"in both '{known.split}' and '{row.split}'" if known.split != row.split else "under two labels"
        raise ValueError(f"{where}: {row.file} is {reason}, in {both}: remove one of the lines")
    return repeated


def _read_text(contents: OpenArchive, table: str) -> str:
    r"""Return the text of a table, its lines ended by "\n" as programs on any system end them."""
    return decode_text(table, contents.read(table)).replace("\r\n", "\n").replace("\r", "\n")


def _rows(where: str, table: str, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    try:
        for row in reader:
            if row and any(map(str.strip, row)):
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{where}: {table} is not a table ({error}): replace it by a complete copy") from error


def _find_columns(text: str) -> _Columns | None:
    """Return where the files and labels of a table are, by the names in its first line, or without such names."""
    first = text.lstrip().partition("\n")[0]
    for separator in _SEPARATORS:
        cells = [cell.strip().strip("\"'").strip() for cell in first.split(separator)]
        lower = [cell.lower() for cell in cells]
        file = next((lower.index(name) for name in FILE_COLUMNS if name in lower), None)
        label = next((lower.index(name) for name in LABEL_COLUMNS if name in lower), None)
        if file is not None and label is not None:
            repeated = next((cells[at] for at in (file, label) if lower.count(lower[at]) > 1), "")
            return _Columns(separator, file, label, header=True, repeated=repeated)
        files = [at for at, cell in enumerate(lower) if PurePosixPath(cell).suffix in SUFFIXES]
        if len(cells) == 2 and len(files) == 1:
            return _Columns(separator, files[0], 1 - files[0], header=False)
    return None


def _describe_first_line(text: str) -> str:
    first = text.strip().partition("\n")[0].strip()
    if not first:
        return "has no rows of filename,label: replace it by a complete copy"
    shown = first if len(first) <= 80 else f"{first[:80]}…"
    return f"has no columns filename and label; it begins with {shown!r}: name its columns filename,label"


def _find_file(cell: str, folder: str, names: set[str]) -> str | None:
    """Return the file that a cell names: in images/ beside the table, or beside it."""
    for path in dict.fromkeys([cell, cell.replace("\\", "/")]):
        plain = path.removeprefix("./")
        for place in (f"{folder}/images/{plain}", f"{folder}/{plain}"):
            if place.lstrip("/") in names:
                return place.lstrip("/")
    return None
