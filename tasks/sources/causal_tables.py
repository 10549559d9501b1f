"""Serve tables drawn from a prior as a task source: the endless tasks on which prior-fitted networks are trained.

Each task is a table of its own: a random structural causal model gives its columns, one of which, or a few together,
decides the class of each row. Support and query are rows of the same table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from tasks.random import Integers, Reals, generator, stream
from tasks.sources import causal_models, table_columns
from tasks.sources.many_sizes import order_rows, require_fewest, require_no_ways
from tasks.text import part_of
from tasks.types import Episode, EpisodeShape, Examples, PaddedExamples, Progress, Split, TaskSpec

_ATTEMPTS = 8
"""How many targets of one table are drawn until one has two classes."""


@dataclass(frozen=True)
class CausalTables:
    """A source without any files: tables with numeric, ordinal and categorical features, and classes as targets.

    features, classes: the fewest and the most of a table; few are more frequent than many. Features that a table does
    not have are missing (nan) in all of its rows. fewest: the smallest support set; each task has between `fewest` and
    `shots` support rows, padded to `shots`; None: all have `shots`. missing: the share of tables with missing values.
    together: so many tables with consecutive indices have equal numbers of features and of support rows, and are drawn
    for as many classes, which spares a shard of them the padding.
    """

    features: tuple[int, int] = (1, 20)
    classes: tuple[int, int] = (2, 10)
    fewest: int | None = None
    missing: float = 0.2
    together: int = 1

    def __post_init__(self) -> None:
        for name, least in (("features", 1), ("classes", 2)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(f"{name}: {low} to {high} is no range: set two numbers, {least} or more")
        if not 0 <= self.missing <= 1:
            raise ValueError(f"missing: {self.missing:g} is no share of tables: set a number between 0 and 1")
        if self.together < 1:
            raise ValueError(f"together: {self.together} tables of one size: set 1 or more")
        if self.fewest is not None and self.fewest < 2:
            raise ValueError(f"fewest: {self.fewest} rows show no two classes: set 2 or more")

    def prepare(self, progress: Progress) -> str:
        """Return a description; there is nothing to prepare."""
        low, high = self.features
        return f"causal_tables: endlessly many tables of {low} to {high} features"

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> "Tables":
        """Return the tables of one split; splits differ in their draws only."""
        return Tables(self, split, episode, seed)


class _Sizes(NamedTuple):
    features: int
    classes: int
    """The most that the table has: a class that no row shows is none."""
    support: int


@dataclass(frozen=True)
class Tables:
    """One split's tables, addressed by (seed, split, index).

    Every class of a table is in its support set, whose labels are a random order of 0, 1, …
    """

    source: CausalTables
    split: Split
    episode: EpisodeShape
    seed: int

    def __post_init__(self) -> None:
        differ = "tables differ in their number of classes"
        require_no_ways(self.split, self.episode, differ, also=", and tasks.classes")
        require_fewest(self.split, self.episode, self.source.fewest, "rows")
        if self._fewest < self.source.classes[0]:
            short = f"{self._fewest} rows cannot show {self.source.classes[0]} classes"
            remedy = "raise it (and tasks.fewest), or lower tasks.classes"
            raise ValueError(f"{part_of(self.split)}.shots: {short}: {remedy}")

    @property
    def _fewest(self) -> int:
        """Return the rows of the smallest support set."""
        return self.episode.shots if self.source.fewest is None else self.source.fewest

    @property
    def spec(self) -> TaskSpec:
        """Return the spec of tables of the most features and classes."""
        most = self.source.features[1], self.source.classes[1]
        padded = self.source.fewest is not None
        return TaskSpec("classification", most[1], (most[0],), (), masked=padded, missing=True)

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return the tables at `indices`, stacked: support.x [B, shots, features], .y [B, shots]; query.x, .y alike.

        Missing values, and rows that pad the support set, are nan in x, float32; y is int64, 0 where padded.
        """
        shots, queries, most = self.episode.shots, self.episode.queries, self.source.features[1]
        x = np.full((len(indices), shots + queries, most), np.nan, np.float32)
        y = np.zeros((len(indices), shots + queries), np.int64)
        mask = np.zeros((len(indices), shots), bool)
        for at, index in enumerate(indices):
            sizes = self._sizes(index)
            features, target = self._table(index, sizes)
            rows = np.r_[: sizes.support, shots : shots + queries]
            x[at, rows, : sizes.features], y[at, rows] = features, target
            mask[at, : sizes.support] = True
        whole_x, whole_y = torch.from_numpy(x), torch.from_numpy(y)
        shown = whole_x[:, :shots].contiguous(), whole_y[:, :shots].contiguous()
        query = Examples(whole_x[:, shots:].contiguous(), whole_y[:, shots:].contiguous())
        if self.source.fewest is None:
            return Episode(Examples(*shown), query)
        padded: Any = PaddedExamples(*shown, torch.from_numpy(mask))
        return Episode(padded, query)

    def _sizes(self, index: int) -> _Sizes:
        """Return the size of a table: that of all in its group of `together`."""
        draw = generator(self.seed, stream("causal-tables", self.split, "sizes"), index // self.source.together)
        low, high = self.source.features
        features = min(int(np.exp(draw.uniform(np.log(low), np.log(high + 1)))), high)
        support = int(draw.integers(self._fewest, self.episode.shots + 1))
        low, high = self.source.classes
        return _Sizes(features, low + int((min(high, support) - low + 1) * draw.random() ** 2), support)

    def _table(self, index: int, sizes: _Sizes) -> tuple[Reals, Integers]:
        """Return the features [rows, d] and classes [rows] of a table, its support rows first."""
        draw = generator(self.seed, stream("causal-tables", self.split), index)
        rows = sizes.support + self.episode.queries
        features, target = _draw_table(draw, rows, sizes.features, sizes.classes)
        order = order_rows(draw, target, sizes.support)
        target = _numbered(draw, target)
        features = table_columns.as_measured(draw, features)
        if draw.random() < self.source.missing:
            features = table_columns.with_missing(draw, features)
        return features[order], target[order]


def _draw_table(draw: np.random.Generator, rows: int, features: int, classes: int) -> tuple[Reals, Integers]:
    """Return features [rows, d] and the class of each row, two at least, some of `classes`."""
    count = features + 3 + int(draw.integers(0, 2 * features + 4))
    width = int(draw.integers(1, max(2, count // 3) + 1))
    roots, target = table_columns.draw_roots(draw, rows, width, classes)
    nodes = causal_models.grow(draw, roots, count)
    for _ in range(_ATTEMPTS):
        if target is not None:
            break
        deciding = draw.integers(0, count, int(draw.integers(1, 4)))
        found = table_columns.draw_classes(draw, nodes[:, deciding], classes)
        target = found if len(np.unique(found)) > 1 else None
    if target is None:  # every node that was tried is constant
        target = np.arange(rows) % 2
    return nodes[:, draw.permutation(count)[:features]], target


def _numbered(draw: np.random.Generator, target: Integers) -> Integers:
    """Return the classes under the numbers 0, 1, … in random order."""
    names, found = np.unique(target, return_inverse=True)
    return draw.permutation(len(names))[found].astype(np.int64)
