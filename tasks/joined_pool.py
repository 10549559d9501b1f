"""Join the classes of several pools into one, whose numbers are those of the first pool and then those of the next."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tasks.few_shot import ClassPool
from tasks.random import Integers
from tasks.store.class_pool import StorePool
from tasks.store.store import Images
from tasks.types import Shape

_MOST_LISTED = 10**6
"""Classes up to which the number of members of each is kept in a table."""


@dataclass(frozen=True)
class JoinedPool:
    """The classes of several pools, of one shape of examples."""

    pools: tuple[ClassPool, ...]

    name = "joined"

    @cached_property
    def starts(self) -> Integers:
        """Return the number of the first class of each pool, and the number of all classes: [pools + 1]."""
        return np.cumsum([0, *(pool.num_classes for pool in self.pools)])

    @property
    def num_classes(self) -> int:
        """Return the number of classes of all pools."""
        return int(self.starts[-1])

    @property
    def example_shape(self) -> Shape:
        """Return the shape of an example."""
        return self.pools[0].example_shape

    @property
    def min_class_size(self) -> int:
        """Return the number of members of the smallest class."""
        return min(pool.min_class_size for pool in self.pools)

    def sizes(self, classes: Integers) -> Integers:
        """Return the number of members of each of `classes` [R]."""
        if self._sizes is not None:
            return self._sizes[classes]
        found = np.empty(len(classes), np.int64)
        for number, rows in self._rows(classes):
            found[rows] = self.pools[number].sizes(classes[rows] - self.starts[number])
        return found

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        """Return member members[r] of class classes[r], both [R]: float32 [R, *example_shape]."""
        parts = self._rows(classes)
        if len(parts) == 1:
            return self.pools[parts[0][0]].examples(classes - self.starts[parts[0][0]], members)
        if self._stores:
            return self._stores[0].normalise(self._pixels(parts, classes, members))
        found = torch.empty(len(classes), *self.example_shape)
        for number, rows in parts:
            kinds = classes[rows] - self.starts[number]
            found.numpy()[rows] = self.pools[number].examples(kinds, members[rows]).numpy()
        return found

    def _pixels(self, parts: list[tuple[int, Integers]], classes: Integers, members: Integers) -> Images:
        """Return the images of `examples` from stores, [R, *example_shape], each written to its place at once."""
        found = np.empty((len(classes), *self.example_shape), np.uint8)
        for number, rows in parts:
            for place in _runs(rows):
                self._stores[number].pixels(classes[place] - self.starts[number], members[place], found[place])
        return found

    def denormalize(self, x: Tensor) -> Tensor:
        """Return images as they are: they are in [0, 1]."""
        return x

    def class_names(self, classes: Integers) -> list[str]:
        """Return the display name of each of `classes`."""
        found = [""] * len(classes)
        for number, rows in self._rows(classes):
            names = self.pools[number].class_names(classes[rows] - self.starts[number])
            for row, name in zip(rows, names, strict=True):
                found[row] = name
        return found

    @cached_property
    def _sizes(self) -> Integers | None:
        """Return the number of members of every class; None where classes are too many for a table."""
        if self.num_classes > _MOST_LISTED:
            return None
        return np.concatenate([pool.sizes(np.arange(pool.num_classes)) for pool in self.pools])

    @cached_property
    def _stores(self) -> list[StorePool]:
        """Return the pools where all are of stores whose images are normalised alike, once for all; else none."""
        stores = [pool for pool in self.pools if isinstance(pool, StorePool)]
        alike = len(stores) == len(self.pools) and len({(pool.mean, pool.std) for pool in stores}) == 1
        return stores if alike else []

    def _rows(self, classes: Integers) -> list[tuple[int, Integers]]:
        """Return the number of each pool that has some of `classes`, and where they stand."""
        owners = np.searchsorted(self.starts, classes, side="right") - 1
        present = np.flatnonzero(np.bincount(owners)).tolist()
        if len(present) == 1:
            return [(present[0], np.arange(len(classes)))]
        return [(number, np.flatnonzero(owners == number)) for number in present]


def _runs(rows: Integers) -> Iterator[slice]:
    """Yield the ranges of numbers, in ascending order, that follow one another without a gap."""
    for start, end in itertools.pairwise([0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]):
        yield slice(rows[start], rows[start] + end - start)
