"""Read labelled feature vectors from a file: Parquet, CSV, or numpy's .npz."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.sources.npz_files import read_npz
from tasks.sources.table_files import read_table
from tasks.text import count_of, enumerate_few

Vectors = NDArray[np.float32]

SUFFIXES = (".parquet", ".csv", ".npz")


class Names(NamedTuple):
    """What columns (or arrays) of a file are called: of the class, of the split, of the group, and of the features."""

    label: str
    split: str | None = None
    group: str | None = None
    columns: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """Return those that hold no features."""
        return [name for name in (self.label, self.split, self.group) if name is not None]


class Labelled(NamedTuple):
    """Vectors [n, D], and of each row its class, split and group, as text; None for those that the file lacks."""

    x: Vectors
    labels: list[str]
    splits: list[str] | None
    groups: list[str] | None
    ignored: tuple[str, ...] = ()
    """Columns that hold neither features nor what was named."""


def read_vectors(path: Path, names: Names) -> Labelled:
    """Read a file, which is kept for as long as it does not change. ValueError: it cannot be read as vectors."""
    return _read(path, names, *state_of(path))


def state_of(path: Path) -> tuple[int, int]:
    """Return when a file was changed, and its size. ValueError: it is no file that vectors are read from."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"root: {path} is none of {', '.join(SUFFIXES)}: set tasks.root to such a file")
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"root: {path} cannot be read ({error.strerror}): set tasks.root to a file") from error
    return status.st_mtime_ns, status.st_size


@lru_cache(4)
def _read(path: Path, names: Names, *_state: int) -> Labelled:
    columns, features = _read_npz(path, names) if path.suffix.lower() == ".npz" else _read_table(path, names)
    texts = {name: columns[name] for name in names.texts}
    ignored = tuple(name for name in columns if name not in texts and name not in features)
    x = _as_vectors(path, [columns[name] for name in features], features)
    text_of = {name: _as_text(path, name, values) for name, values in texts.items()}
    for name, values in text_of.items():
        if len(values) != len(x):
            raise ValueError(f"root: {path.name} has {len(x)} vectors and {len(values)} of '{name}': make them as many")
    splits, groups = (None if name is None else text_of[name] for name in (names.split, names.group))
    return Labelled(x, text_of[names.label], splits, groups, ignored)


def _read_npz(path: Path, names: Names) -> tuple[dict[str, Any], list[str]]:
    """Return the arrays of a file, and the names of those that hold features."""
    found = read_npz(path)
    plain = [name for name, array in found.items() if array.ndim == 2 and array.dtype.kind in "fiu"]
    return found, _choose(path, names, list(found), plain, vectors=plain)


def _read_table(path: Path, names: Names) -> tuple[dict[str, Any], list[str]]:
    """Return the columns of a file, and the names of those that hold features: numbers, or lists of numbers."""
    table = read_table(path, names.texts)
    known = table.column_names
    kinds = {name: table.schema.field(name).type for name in known}
    lists = [name for name, kind in kinds.items() if _is_list(kind) and _is_number(kind.value_type)]
    numbers = [name for name, kind in kinds.items() if _is_number(kind)]
    return {name: table[name] for name in known}, _choose(path, names, known, lists or numbers, vectors=lists)


def _choose(path: Path, names: Names, known: Sequence[str], fit: Sequence[str], vectors: Sequence[str]) -> list[str]:
    """Return the columns of features: those that are named, or the one of vectors, or all that fit."""
    for name in (*names.texts, *names.columns):
        if name not in known:
            raise ValueError(f"root: {path.name} has no '{name}', only {enumerate_few(list(known))}: set its name")
    chosen = list(names.columns) or [name for name in fit if name not in names.texts]
    if not chosen:
        raise ValueError(
            f"root: {path.name} has no column of numbers beside {enumerate_few(names.texts)}: add features"
        )
    if len(vectors) > 1 and not names.columns:
        raise ValueError(
            f"columns: {path.name} has vectors in {enumerate_few(list(vectors))}: set tasks.columns to one"
        )
    return chosen


def _as_vectors(path: Path, columns: Sequence[Any], features: Sequence[str]) -> Vectors:
    """Return columns of numbers beside each other, lists of numbers as several. ValueError: some are missing."""
    parts = [_as_matrix(path, name, column) for name, column in zip(features, columns, strict=True)]
    if not all(part.size for part in parts):
        raise ValueError(f"root: {path.name} has no rows, or rows without a number: add some")
    if len({len(part) for part in parts}) > 1:
        raise ValueError(f"root: {path.name} has features of several lengths: make them as many")
    x: Vectors = np.concatenate(parts, 1)
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        count = count_of(int(bad.sum()), "row")
        first = f"the first of them row {int(bad.argmax())}"
        raise ValueError(
            f"root: {path.name} has {count} with a number that is missing or not finite, {first}: remove it"
        )
    return x


def _as_matrix(path: Path, name: str, column: Any) -> Vectors:
    from pyarrow import compute

    if isinstance(column, np.ndarray):
        if column.ndim not in (1, 2) or column.dtype.kind not in "fiu":
            raise ValueError(f"columns: '{name}' of {path.name} is no array [n, D] of numbers: set another")
        with np.errstate(over="ignore"):  # told as not finite
            return column.astype(np.float32).reshape(len(column), 1 if column.ndim == 1 else column.shape[1])
    if _is_number(column.type):
        return column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False).reshape(-1, 1)  # type: ignore[no-any-return]
    if not (_is_list(column.type) and _is_number(column.type.value_type)):
        raise ValueError(f"columns: '{name}' of {path.name} is of type {column.type}: name columns of numbers")
    sizes = compute.list_value_length(column).to_numpy(zero_copy_only=False)
    if column.null_count or len(set(sizes.tolist())) > 1:
        raise ValueError(f"root: '{name}' of {path.name} lacks vectors, or has some of other lengths: make them alike")
    if not len(sizes):
        return np.empty((0, 1), np.float32)
    flat = compute.list_flatten(column).cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return flat.reshape(len(sizes), -1)  # type: ignore[no-any-return]


def _as_text(path: Path, name: str, column: Any) -> list[str]:
    """Return what a column says of each row. ValueError: of some rows it says nothing."""
    if isinstance(column, np.ndarray) and column.ndim != 1:
        raise ValueError(f"root: '{name}' of {path.name} has shape {column.shape}: make it one value a row")
    values = column.tolist() if isinstance(column, np.ndarray) else column.to_pylist()
    missing = sum(value in (None, "", b"") or value != value for value in values)
    if missing:
        raise ValueError(f"root: {path.name} has {count_of(missing, 'row')} without '{name}': remove it")
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
