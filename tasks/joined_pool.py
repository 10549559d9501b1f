"""Join the classes of several pools into one, whose numbers are those of the first pool and then those of the next."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tasks.few_shot import ClassPool
from tasks.random import Integers
from tasks.store.class_pool import StorePool
from tasks.types import Shape


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
        found = np.empty(len(classes), np.int64)
        for number, rows in self._rows(classes):
            if len(rows) == len(classes):
                return self.pools[number].sizes(classes - self.starts[number])
            found[rows] = self.pools[number].sizes(classes[rows] - self.starts[number])
        return found

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        """Return member members[r] of class classes[r], both [R]: float32 [R, *example_shape]."""
        found = torch.empty(len(classes), *self.example_shape)
        for number, rows in self._rows(classes):
            pool, chosen = self.pools[number], (classes[rows] - self.starts[number], members[rows])
            if len(rows) == len(classes):
                return pool.examples(*chosen)
            if isinstance(pool, StorePool):
                pool.fill(found, rows, *chosen)
            else:
                found.numpy()[rows] = pool.examples(*chosen).numpy()
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

    def _rows(self, classes: Integers) -> list[tuple[int, Integers]]:
        """Return the number of each pool that has some of `classes`, and where they stand."""
        owners = np.searchsorted(self.starts, classes, side="right") - 1
        present = np.flatnonzero(np.bincount(owners)).tolist()
        if len(present) == 1:
            return [(present[0], np.arange(len(classes)))]
        return [(number, np.flatnonzero(owners == number)) for number in present]
