"""Define the sizes of episodes that differ from task to task: ways, shots and queries."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tasks.environments.shape import EnvironmentShape

MOST_SUPPORT = 500
"""The largest support set whose classes are imbalanced."""
MOST_SHOTS = 100
"""Examples of a class up to which it has more support examples the more it has."""


@dataclass(frozen=True)
class Range:
    """Whole numbers from `min` to `max`, one of which is drawn for each task, all equally often."""

    min: int = 1
    max: int = 1

    def __post_init__(self) -> None:
        if self.min < 1:
            raise ValueError(f"min: {self.min} is below 1: set it to 1 or more")
        if self.max < self.min:
            raise ValueError(f"max: {self.max} is below min, {self.min}: set it to {self.min} or more")


@dataclass(frozen=True)
class RaggedShape:
    """Size of episodes that differ: in their number of classes, or in support or query examples of each.

    ways: so many classes, or a range, cut off at the classes there are. shots: support examples of each class, or a
    range of them, one number for all classes of a task; "imbalanced" is a number for each class, by the rule of
    Meta-Dataset. queries: query examples of each class, or a range; with imbalanced shots at most half of the examples
    of the task's smallest class. sampler: "uniform" draws classes from all of the split; "meta_dataset" from a group of
    them where the source has groups: an alphabet, or the classes below a node of a hierarchy.
    """

    ways: int | Range = Range(5, 50)
    shots: int | Range | Literal["imbalanced"] = "imbalanced"
    queries: int | Range = 10
    sampler: Literal["uniform", "meta_dataset"] = "uniform"

    def __post_init__(self) -> None:
        if least(self.ways) < 2:
            raise ValueError(f"ways: {least(self.ways)}-way classification has nothing to tell apart: set 2 or more")
        for name in ("shots", "queries"):
            value = getattr(self, name)
            if value != "imbalanced" and least(value) < 1:
                raise ValueError(f"{name}: {value} is below 1: set {name} to 1 or more")
        if self.shots == "imbalanced" and most(self.ways) > MOST_SUPPORT:
            reason = f"ways: {most(self.ways)} classes share {MOST_SUPPORT} support examples where shots are imbalanced"
            raise ValueError(f"{reason}: set ways to {MOST_SUPPORT} or fewer, or shots to a number")
        if self.sampler == "meta_dataset" and self.shots != "imbalanced":
            raise ValueError(
                f"sampler: meta_dataset draws imbalanced shots, and shots is {describe(self.shots)}: set "
                "shots=imbalanced ways={min: 5, max: 50} queries=10, or sampler=uniform"
            )

    @property
    def most_examples(self) -> tuple[int, int]:
        """Return the most support and query examples of a task."""
        ways = most(self.ways)
        support = MOST_SUPPORT if self.shots == "imbalanced" else ways * most(self.shots)
        return support, ways * most(self.queries)


def least(value: int | Range) -> int:
    """Return the smallest number that is drawn."""
    return value.min if isinstance(value, Range) else value


def most(value: int | Range) -> int:
    """Return the largest number that is drawn."""
    return value.max if isinstance(value, Range) else value


def describe(value: Any) -> str:
    """Return a number, a range (also as plain values) or a rule as text: 5, 5 to 50, imbalanced."""
    if isinstance(value, Mapping):
        value = Range(**value)
    return f"{value.min} to {value.max}" if isinstance(value, Range) else str(value)


def describe_size(ways: Any, shots: Any, queries: Any) -> str:
    """Return the size of an episode in words: 5-way 1-shot, 15 queries a class."""
    size = f"{describe(shots)}-shot, {describe(queries)} queries"
    return size if ways is None else f"{describe(ways)}-way {size} a class"


def draw_number(draw: np.random.Generator, value: int | Range, limit: int | None = None) -> int:
    """Draw from a range, cut off at `limit`; a number is itself."""
    if isinstance(value, int):
        return value
    top = value.max if limit is None else min(value.max, limit)
    return int(draw.integers(value.min, top + 1))


def describe_shape(shape: Any) -> str:
    """Return the size of episodes in words, of one size or of many: their classes' sampler if it has a name."""
    if isinstance(shape, EnvironmentShape):
        return f"{shape.episodes} episodes"
    size = describe_size(shape.ways, shape.shots, shape.queries)
    sampler = getattr(shape, "sampler", "uniform")
    return size if sampler == "uniform" else f"{size}, by the sampler {sampler}"
