"""Serve the classes of another pool, changed in one respect by a subclass."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tasks.random import Integers
from tasks.types import Shape


@dataclass(frozen=True)
class WrappedPool:
    """The classes and examples of `pool`, a `tasks.few_shot.ClassPool`. A subclass overrides what it changes."""

    pool: Any

    @property
    def name(self) -> str:
        """Return the name of the source."""
        return str(self.pool.name)

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return int(self.pool.num_classes)

    @property
    def example_shape(self) -> Shape:
        """Return the shape of an example."""
        found: Shape = self.pool.example_shape
        return found

    @property
    def min_class_size(self) -> int:
        """Return the number of examples of the smallest class."""
        return int(self.pool.min_class_size)

    @property
    def few_remedy(self) -> str:
        """Return the setting that leaves out classes with too few examples."""
        return str(getattr(self.pool, "few_remedy", ""))

    def groups(self) -> Any:
        """Return the groups of classes that belong together, if the pool has such."""
        find = getattr(self.pool, "groups", None)
        return None if find is None else find()

    def sizes(self, classes: Integers) -> Integers:
        """Return the number of examples of each of `classes`."""
        found: Integers = self.pool.sizes(classes)
        return found

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        """Return example members[r] of class classes[r], both [R]."""
        found: Tensor = self.pool.examples(classes, members)
        return found

    def denormalize(self, x: Tensor) -> Tensor:
        """Map images [..., C, H, W] back to values in [0, 1], for display."""
        found: Tensor = self.pool.denormalize(x)
        return found

    def class_names(self, classes: Integers) -> list[str]:
        """Return the display name of each of `classes`."""
        found: list[str] = self.pool.class_names(classes)
        return found

    def __getattr__(self, name: str) -> Any:
        """Return what describes the classes, if anything does."""
        if name in ("descriptions", "description_shape"):
            return getattr(self.pool, name)
        raise AttributeError(name)
