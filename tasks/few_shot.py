"""Sample N-way K-shot classification episodes by index from any pool of classes.

N ways, K shots and Q queries per class, B tasks: support.x [B, N·K, *x], query.x [B, N·Q, *x], both ordered by class
(Vinyals et al. 2016). x is the shape of an example, (C, H, W) of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.random import Integers, sample_without_replacement, stream, uniforms
from tasks.text import count_of, part_of
from tasks.types import Episode, EpisodeShape, Examples, Shape, Split, TaskSpec


class ClassGroups(NamedTuple):
    """Groups of classes that belong together, of which an episode has those of one."""

    members: tuple[Integers, ...]
    """The classes of each group."""
    whole: bool
    """Whether an episode has all classes of a group, or as many as may be, and not a number of them that is drawn."""


class ClassPool(Protocol):
    """Classes of examples to draw episodes from. The example of (class, member) never changes.

    A pool whose classes belong together in groups may have the method `groups() -> ClassGroups | None`.
    """

    @property
    def name(self) -> str:
        """Return the name of the source, for messages: "omniglot"."""

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""

    @property
    def example_shape(self) -> Shape:
        """Return the shape of an example: (C, H, W) of an image."""

    @property
    def min_class_size(self) -> int:
        """Return the number of members of the smallest class."""

    def sizes(self, classes: Integers) -> Integers:
        """Return the number of members of each of `classes` [R]."""

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        """Return member members[r] of class classes[r], both [R]: float32 [R, *example_shape]."""

    def denormalize(self, x: Tensor) -> Tensor:
        """Map images [..., C, H, W] as `examples` returns them back to values in [0, 1], for display."""

    def class_names(self, classes: Integers) -> list[str]:
        """Return the display name of each of `classes` [R]."""


@dataclass(frozen=True)
class FewShot:
    """The episodes of one split, addressed by (seed, split, index)."""

    pool: ClassPool
    episode: EpisodeShape
    seed: int
    split: Split

    def __post_init__(self) -> None:
        ways, each, pool = self.episode.ways, self.episode.shots + self.episode.queries, self.pool
        field = part_of(self.split)
        if ways is None:
            raise ValueError(
                f"'{pool.name}' is classification and needs a number of classes per task: set {field}.ways"
            )
        if ways > pool.num_classes:
            have = f"'{self.split}' of {pool.name} has {pool.num_classes}"
            raise ValueError(f"{ways}-way needs {ways} classes; {have}: lower {field}.ways")
        if each > pool.min_class_size:
            need = f"{self.episode.shots} shots and {self.episode.queries} queries need {each} examples of a class"
            have = f"{_name_small_classes(pool, each)} in '{self.split}' of {pool.name}"
            remedy = getattr(pool, "few_remedy", "")
            raise ValueError(
                f"{need}; {have}: lower {field}.shots or {field}.queries{remedy and f', or {remedy}={each}'}"
            )

    @property
    def spec(self) -> TaskSpec:
        """Return the spec of a classification."""
        return TaskSpec("classification", self.episode.ways, self.pool.example_shape, ())

    @property
    def num_classes(self) -> int:
        """Return the number of classes that tasks are drawn from."""
        return self.pool.num_classes

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return the tasks at `indices`, stacked: support.x [B, N·K, *x], support.y [B, N·K]; query with Q."""
        return gather_tasks(self.pool, *self.draw(indices), self.episode)

    def draw(self, indices: Sequence[int]) -> tuple[Integers, Integers]:
        """Draw the classes [B, N] and members [B, N, K + Q] (support first) of the tasks at `indices`.

        A task's classes depend on its index, and not on its shots and queries.
        """
        ways, each = self.spec.ways or 0, self.episode.shots + self.episode.queries
        return draw_examples(self.pool, self.seed, stream("few-shot", self.split), indices, (ways, each))

    def task_classes(self, indices: Sequence[int]) -> Integers:
        """Return the numbers of the classes of the tasks at `indices`: [B, N]."""
        ways = self.spec.ways or 0
        numbers = uniforms(self.seed, stream("few-shot", self.split), indices, ways)
        return sample_without_replacement(numbers, self.pool.num_classes)

    def class_names(self, index: int) -> list[str]:
        """Return the display names of the classes of the task at `index`, in order of label."""
        return self.pool.class_names(self.task_classes([index])[0])

    def denormalize(self, x: Tensor) -> Tensor:
        """Map images [..., C, H, W] of an episode back to values in [0, 1], for display."""
        return self.pool.denormalize(x)


def draw_examples(
    pool: ClassPool,
    seed: int,
    number: int,
    indices: Sequence[int],
    size: tuple[int, int],
    among: tuple[Integers, Integers] | None = None,
) -> tuple[Integers, Integers]:
    """Draw N classes of a pool for each index [B, N], and n members of each [B, N, n]. number: of the random stream.

    size: (N, n). The classes of an index do not depend on n. among: the first class of each task's population, and how
    many there are [B]; None: of all classes.
    """
    ways, each = size
    first, population = (0, pool.num_classes) if among is None else among
    numbers = uniforms(seed, number, indices, ways * (1 + each))
    classes = sample_without_replacement(numbers[:, :ways], population) + np.reshape(first, (-1, 1))
    sizes = pool.sizes(classes.reshape(-1))
    members = sample_without_replacement(numbers[:, ways:].reshape(len(classes) * ways, each), sizes)
    return classes, members.reshape(len(classes), ways, each)


def gather_tasks(pool: ClassPool, classes: Integers, members: Integers, episode: EpisodeShape) -> Episode:
    """Return the tasks of these classes [B, N] and members [B, N, K + Q], stacked: see `FewShot.episodes`."""
    tasks, ways, _ = members.shape
    shots = episode.shots
    parts = members[:, :, :shots], members[:, :, shots:]
    owners = [np.broadcast_to(classes[:, :, None], part.shape).reshape(-1) for part in parts]
    x = pool.examples(np.concatenate(owners), np.concatenate([part.reshape(-1) for part in parts]))
    boundary = tasks * ways * shots
    return Episode(_label(x[:boundary], tasks, ways, shots), _label(x[boundary:], tasks, ways, episode.queries))


def count_examples(pool: ClassPool) -> int:
    """Return the number of examples of all classes."""
    return int(pool.sizes(np.arange(pool.num_classes)).sum())


def locate_examples(pool: ClassPool, places: Sequence[int] | Integers) -> tuple[Integers, Integers]:
    """Return class and member of the examples at `places` [R] among all, which are ordered by class."""
    ends = pool.sizes(np.arange(pool.num_classes)).cumsum()
    at = np.asarray(places, dtype=np.int64)
    classes: Integers = np.searchsorted(ends, at, side="right")
    return classes, at - np.concatenate([[0], ends])[classes]


@dataclass(frozen=True)
class EmptySplit:
    """The tasks of a split without classes, of a source that serves evaluation alone: a spec, and no episodes."""

    pool: ClassPool
    episode: EpisodeShape
    split: Split

    @property
    def spec(self) -> TaskSpec:
        """Return the spec that tasks would have."""
        return TaskSpec("classification", self.episode.ways, self.pool.example_shape, ())

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Raise ValueError: there are no tasks."""
        raise ValueError(f"the split '{self.split}' of {self.pool.name} has no classes: add them, or use another split")


def few_shot(pool: ClassPool, episode: EpisodeShape, seed: int, split: Split) -> FewShot | EmptySplit:
    """Return the episodes over the classes of `pool`; without any classes, a split that has no tasks."""
    return FewShot(pool, episode, seed, split) if pool.num_classes else EmptySplit(pool, episode, split)


def _name_small_classes(pool: ClassPool, least: int) -> str:
    """Return "the class 'cat' has only 3" for the smallest class, with the number of the others below `least`."""
    sizes = pool.sizes(np.arange(pool.num_classes))
    name = pool.class_names(np.array([int(sizes.argmin())]))[0]
    others = int((sizes < least).sum()) - 1
    beside = f" (and {count_of(others, 'other class', 'other classes')} fewer than {least})" if others else ""
    return f"the class {name!r} has only {sizes.min()}{beside}"


def _label(x: Tensor, tasks: int, ways: int, each: int) -> Examples:
    """Return examples [B·N·each, *x], ordered by task and class, as one labelled batch."""
    labels = torch.arange(ways).repeat_interleave(each).expand(tasks, -1)
    return Examples(x.reshape(tasks, ways * each, *x.shape[1:]), labels)
