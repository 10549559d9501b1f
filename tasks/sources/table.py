"""Serve the rows of a real table as tasks: a CSV or Parquet file with a column of classes, or one of scikit-learn's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from tasks.io.home import PathText, home_path
from tasks.random import Integers, Reals, generator, stream
from tasks.sources.many_sizes import order_rows, require_no_ways
from tasks.sources.table_files import read_table
from tasks.text import enumerate_few, part_of
from tasks.types import Episode, EpisodeShape, Examples, Progress, Split, TaskSpec

DATASETS = ("iris", "wine", "breast_cancer", "digits")
"""Tables that scikit-learn ships."""
_LARGEST = 10**8
"""Numbers that a table may hold."""


class Rows(NamedTuple):
    """Features [rows, F], nan where missing, and the number of each row's class [rows] among the sorted classes."""

    x: Reals
    y: Integers
    classes: list[str]
    missing: bool
    """Whether any of x is."""


@dataclass(frozen=True)
class Table:
    """Tasks of one table: support and query rows drawn at random, each class in the support set.

    dataset: one of scikit-learn's, by its name; or root: a CSV or Parquet file, and target: its column of classes.
    Columns of text or of truth values are numbered in sorted order; empty cells are missing (nan). features: how many
    each row has: of a table with more, every task has so many drawn at random; of one with fewer, the others are
    missing in all rows. None: those of the table. All splits draw from all rows: this source is for testing what was
    trained on other tasks, or for methods that tell its splits apart in another way.
    """

    dataset: str | None = None
    root: PathText | None = None
    target: str | None = None
    features: int | None = None

    def __post_init__(self) -> None:
        if self.dataset is not None and self.root is not None:
            raise ValueError(f"dataset: {self.dataset}, and root is set to a file too: remove one of them")
        if self.dataset is not None and self.dataset not in DATASETS:
            raise ValueError(f"dataset: no table is called '{self.dataset}': set one of {', '.join(DATASETS)}")
        if self.dataset is not None and self.target is not None:
            raise ValueError(f"target: that of {self.dataset} is known: remove it")
        if self.root is not None and self.target is None:
            raise ValueError("target: missing: set it to the name of the column of classes")
        if self.features is not None and self.features < 1:
            raise ValueError(f"features: {self.features} leaves nothing to tell classes apart: set 1 or more")

    def prepare(self, progress: Progress) -> str:
        """Read the table, and return what is in it."""
        rows = self.rows()
        name = self.dataset or Path(str(self.root)).name
        return f"table: {len(rows.y)} rows of {name}, {rows.x.shape[1]} features, {len(rows.classes)} classes"

    def rows(self) -> Rows:
        """Return the table. ValueError: it cannot be read as one."""
        if self.dataset is not None:
            return _read_dataset(self.dataset)
        if self.root is None:
            raise ValueError(f"dataset: missing: set one of {', '.join(DATASETS)}, or set root to a file")
        path = home_path(str(self.root))
        try:
            changed = path.stat().st_mtime_ns
        except OSError as error:
            raise ValueError(f"root: {path} cannot be read ({error.strerror}): set a CSV or Parquet file") from error
        return _read_file(path, str(self.target), changed)

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> "TableTasks":
        """Return tasks of one split; splits differ in their draws only."""
        return TableTasks(self, split, episode, seed)


@dataclass(frozen=True)
class TableTasks:
    """One split's tasks, addressed by (seed, split, index)."""

    source: Table
    split: Split
    episode: EpisodeShape
    seed: int

    def __post_init__(self) -> None:
        part = part_of(self.split)
        rows, asked = self.source.rows(), self.episode.shots + self.episode.queries
        require_no_ways(self.split, self.episode, "tasks have all classes of the table")
        if self.episode.shots < len(rows.classes):
            short = f"{self.episode.shots} rows cannot show {len(rows.classes)} classes"
            raise ValueError(f"{part}.shots: {short}: raise it")
        if asked > len(rows.y):
            raise ValueError(f"{part}.queries: {asked} rows a task of {len(rows.y)}: lower it, or the shots")

    @property
    def spec(self) -> TaskSpec:
        """Return the spec of rows of numbers in classes."""
        rows, features = self.source.rows(), self.source.features
        own = rows.x.shape[1]
        missing = rows.missing or (features or own) > own
        return TaskSpec("classification", len(rows.classes), (features or own,), (), missing=missing)

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return the tasks at `indices`, stacked: support.x [B, shots, F], .y [B, shots]; query.x, .y alike."""
        x, y = (np.stack(parts) for parts in zip(*map(self._draw, indices), strict=True))
        shots = self.episode.shots
        rows, labels = torch.from_numpy(x).float(), torch.from_numpy(y)
        parts = (slice(None, shots), slice(shots, None))
        return Episode(*(Examples(rows[:, part].contiguous(), labels[:, part].contiguous()) for part in parts))

    def class_names(self, index: int) -> list[str]:
        """Return the classes of the table, in the order of labels."""
        return self.source.rows().classes

    def _draw(self, index: int) -> tuple[Reals, Integers]:
        """Return features [shots + queries, F] and labels of one task; more queries leave its support set as it is."""
        draw = generator(self.seed, stream("table", self.split), index)
        rows, shots = self.source.rows(), self.episode.shots
        chosen = order_rows(draw, rows.y, shots)[: shots + self.episode.queries]
        own = rows.x.shape[1]
        features = self.source.features or own
        kept = np.sort(draw.permutation(own)[:features])
        x = np.full((len(chosen), features), np.nan)
        x[:, : len(kept)] = rows.x[np.ix_(chosen, kept)]
        return x, rows.y[chosen]


@lru_cache(8)
def _read_dataset(name: str) -> Rows:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError(f"dataset: {name} is scikit-learn's, which is not installed: install it") from error
    found = getattr(datasets, f"load_{name}")()
    return _rows(found.data.astype(np.float64), found.target, [str(one) for one in found.target_names])


@lru_cache(8)
def _read_file(path: Path, target: str, changed: int) -> Rows:
    """Read a file; `changed`, its time of modification, is part of the key under which it is kept."""
    table = read_table(path, [target])
    names = table.column_names
    if target not in names:
        raise ValueError(f"target: {path.name} has no column '{target}': set one of {enumerate_few(names)}")
    if table.num_rows * table.num_columns > _LARGEST:
        raise ValueError(f"root: {path.name} holds more than {_LARGEST:,} numbers: draw some of its rows")
    column = table[target]
    if column.null_count:
        raise ValueError(f"target: {column.null_count} rows of {path.name} have no class: remove them")
    classes, y = np.unique([str(one) for one in column.to_pylist()], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"target: all rows of {path.name} are of one class: set another column")
    others = [name for name in names if name != target]
    if not others:
        raise ValueError(f"root: {path.name} has no column beside '{target}': add features")
    x = np.stack([_as_numbers(name, table[name]) for name in others], 1)
    return _rows(x, y, classes.tolist())


def _rows(x: Reals, y: Integers, classes: list[str]) -> Rows:
    return Rows(x, y.astype(np.int64), classes, bool(np.isnan(x).any()))


def _as_numbers(name: str, column: Any) -> Reals:
    """Return a column as numbers, nan where it is empty; text and truth values by their place in sorted order."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    values = column.to_pylist()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind)):
        if all(one is None for one in values):
            return np.full(len(values), np.nan)
        raise ValueError(f"root: the column '{name}' is of type {kind}: make it numbers or text, or remove it")
    codes = {one: float(number) for number, one in enumerate(sorted({one for one in values if one is not None}))}
    return np.array([np.nan if one is None else codes[one] for one in values])
