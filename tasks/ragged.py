"""Sample episodes of many sizes by index from any pool of classes, and group tasks of one size into batches.

The rules for imbalanced support sets and for classes from groups are those of Meta-Dataset (Triantafillou et al. 2020,
section 3 and appendix A.2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from tasks.few_shot import ClassGroups, ClassPool, EmptySplit
from tasks.ragged_shape import (
    MOST_SHOTS,
    MOST_SUPPORT,
    RaggedShape,
    Range,
    draw_number,
    least,
    most,
)
from tasks.random import Integers, generator, sample_without_replacement, stream
from tasks.text import part_of
from tasks.types import Episode, EpisodeShape, Examples, Split, TaskDistribution, TaskSpec


class Plan(NamedTuple):
    """What one episode is made of."""

    classes: Integers
    """[N], in the order of their labels."""
    shots: Integers
    """Support examples of each class [N]."""
    queries: int
    """Query examples of each class."""

    @property
    def size(self) -> tuple[int, int, int]:
        """Return ways, and the numbers of support and query examples: tasks of one size can be stacked."""
        return len(self.classes), int(self.shots.sum()), self.queries * len(self.classes)


class Drawn(NamedTuple):
    """One episode: which examples of its classes it has, in the order of classes."""

    plan: Plan
    support: Integers
    """The numbers of the support examples within their classes [S]."""
    query: Integers


class TaskBatch(NamedTuple):
    """Tasks of one size, stacked."""

    tasks: Any
    places: tuple[int, ...]
    """Where each stands among the tasks that were asked for."""
    spec: TaskSpec
    """Of these tasks: their ways are those that they have."""


def sample_batches(distribution: TaskDistribution[Any], indices: Sequence[int]) -> list[TaskBatch]:
    """Return the tasks at `indices` in batches of one size, in the order in which their sizes first occur.

    Distributions of tasks of one size give one batch; others have the method `batches(indices)`.
    """
    if distribution.spec.ragged:
        grouped: Any = distribution
        return list(grouped.batches(indices))
    return [TaskBatch(distribution.episodes(indices), tuple(range(len(indices))), distribution.spec)]


def ragged_tasks(pool: ClassPool, shape: RaggedShape, seed: int, split: Split) -> "RaggedFewShot | EmptySplit":
    """Return the episodes over the classes of `pool`; without any classes, a split that has no tasks."""
    if not pool.num_classes:
        return EmptySplit(pool, EpisodeShape(most(shape.ways), 1, 1), split)
    return RaggedFewShot(pool, shape, seed, split)


@dataclass(frozen=True)
class RaggedFewShot:
    """Episodes of many sizes over the classes of a pool, addressed by (seed, split, index)."""

    pool: ClassPool
    shape: RaggedShape
    seed: int
    split: Split

    def __post_init__(self) -> None:
        pool, part = self.pool, part_of(self.split)
        have = f"'{self.split}' of {pool.name}"
        fewest = least(self.shape.ways)
        if fewest > pool.num_classes:
            raise ValueError(f"{fewest}-way needs {fewest} classes; {have} has {pool.num_classes}: lower {part}.ways")
        if self._groups is not None and not self._groups.members:
            raise ValueError(
                f"{fewest}-way needs {fewest} classes of a group; {have} has none so large: lower {part}.ways"
            )
        if isinstance(self.shape.shots, (int, Range)):
            need, of = most(self.shape.shots) + most(self.shape.queries), "shots and queries"
        else:
            need, of = 2, "imbalanced shots"
        if need > pool.min_class_size:
            remedy = getattr(pool, "few_remedy", "")
            raise ValueError(
                f"{of} need {need} examples of a class; the smallest in {have} has {pool.min_class_size}: lower "
                f"{part}.shots or {part}.queries{remedy and f', or {remedy}={need}'}"
            )

    @property
    def spec(self) -> TaskSpec:
        """Return the spec of a classification of the most ways."""
        sizes = [self.pool.num_classes] if self._groups is None else [len(one) for one in self._groups.members]
        ways = min(most(self.shape.ways), max(sizes))
        return TaskSpec("classification", ways, self.pool.example_shape, (), ragged=True)

    @property
    def num_classes(self) -> int:
        """Return the number of classes that tasks are drawn from."""
        return self.pool.num_classes

    def plan(self, index: int) -> Plan:
        """Draw the classes of the task at `index`, and how many examples of each it has."""
        return self._plan(self._generator(index))

    def batches(self, indices: Sequence[int]) -> Iterator[TaskBatch]:
        """Yield the tasks at `indices` in batches of one size."""
        drawn, spec = [self._draw(index) for index in indices], self.spec
        groups: dict[tuple[int, int, int], list[int]] = {}
        for place, one in enumerate(drawn):
            groups.setdefault(one.plan.size, []).append(place)
        for (ways, _, _), places in groups.items():
            yield TaskBatch(self._stack([drawn[place] for place in places]), tuple(places), spec._replace(ways=ways))

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return tasks of one size, stacked, each ordered by class: support.x [B, S, *x], query.x [B, N·Q, *x].

        ValueError: they are not of one size.
        """
        drawn = [self._draw(index) for index in indices]
        sizes = {one.plan.size for one in drawn}
        if len(sizes) > 1:
            raise ValueError(f"tasks of {len(sizes)} sizes cannot be stacked: use sample_batches")
        return self._stack(drawn)

    def _stack(self, drawn: Sequence[Drawn]) -> Episode:
        """Return the examples of tasks of one size."""
        support = [(one.plan.classes, one.plan.shots, one.support) for one in drawn]
        query = [(one.plan.classes, np.full_like(one.plan.shots, one.plan.queries), one.query) for one in drawn]
        return Episode(self._examples(support), self._examples(query))

    def _examples(self, tasks: Sequence[tuple[Integers, Integers, Integers]]) -> Examples:
        """Return examples of each task: of its classes [N], so many [N], with these numbers in their classes."""
        owners = [classes.repeat(counts) for classes, counts, _ in tasks]
        labels = [np.arange(len(classes)).repeat(counts) for classes, counts, _ in tasks]
        x = self.pool.examples(_join(owners), _join([members for _, _, members in tasks]))
        size = len(owners[0]) if tasks else 0
        y = torch.from_numpy(_join(labels)).view(len(tasks), size)
        return Examples(x.reshape(len(tasks), size, *x.shape[1:]), y)

    def task_classes(self, indices: Sequence[int]) -> Integers:
        """Return the numbers of the classes of the tasks at `indices`: [B, most ways], -1 where a task has fewer."""
        found = np.full((len(indices), self.spec.ways or 0), -1, np.int64)
        for row, index in zip(found, indices, strict=True):
            classes = self.plan(index).classes
            row[: len(classes)] = classes
        return found

    def class_names(self, index: int) -> list[str]:
        """Return the display names of the classes of the task at `index`, in order of label."""
        return self.pool.class_names(self.plan(index).classes)

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [..., C, H, W] of an episode back to values in [0, 1], for display."""
        return self.pool.denormalize(x)

    @cached_property
    def _groups(self) -> ClassGroups | None:
        """Return the groups that have enough classes; None where classes are drawn from all."""
        find = getattr(self.pool, "groups", None) if self.shape.sampler == "meta_dataset" else None
        found: ClassGroups | None = None if find is None else find()
        if found is None:
            return None
        return found._replace(members=tuple(one for one in found.members if len(one) >= least(self.shape.ways)))

    def _generator(self, index: int) -> np.random.Generator:
        return generator(self.seed, stream("ragged", self.split), index)

    def _plan(self, draw: np.random.Generator) -> Plan:
        classes = self._draw_classes(draw)
        sizes, queries = self.pool.sizes(classes), draw_number(draw, self.shape.queries)
        if isinstance(self.shape.shots, (int, Range)):
            return Plan(classes, np.full(len(classes), draw_number(draw, self.shape.shots)), queries)
        queries = min(queries, int(sizes.min()) // 2)
        return Plan(classes, imbalanced_shots(draw, sizes, queries), queries)

    def _draw_classes(self, draw: np.random.Generator) -> Integers:
        """Draw classes [N] in random order: from all, or from one group."""
        members: Integers | None = None
        if self._groups is not None:
            members = self._groups.members[int(draw.integers(len(self._groups.members)))]
        population = self.pool.num_classes if members is None else len(members)
        whole = self._groups is not None and self._groups.whole
        ways = min(most(self.shape.ways), population) if whole else draw_number(draw, self.shape.ways, population)
        places = sample_without_replacement(draw.random((1, ways)), population)[0]
        classes: Integers = places if members is None else members[places]
        return classes

    def _draw(self, index: int) -> Drawn:
        draw = self._generator(index)
        plan = self._plan(draw)
        each = [
            np.split(draw.choice(int(size), int(shots) + plan.queries, replace=False), [int(shots)])
            for size, shots in zip(self.pool.sizes(plan.classes), plan.shots, strict=True)
        ]
        return Drawn(plan, _join([one[0] for one in each]), _join([one[1] for one in each]))


def imbalanced_shots(draw: np.random.Generator, sizes: Integers, queries: int) -> Integers:
    """Draw the support examples of each class [N], by the rule of Meta-Dataset.

    With n_c examples of class c and q queries of each, β from U[0, 1) and a_c from U[ln ½, ln 2):

        |S| = min(500, Σ_c ⌊β min(100, n_c − q) + 1⌋)
        R_c = n_c exp(a_c) / Σ_j n_j exp(a_j)
        k_c = min(⌊R_c (|S| − N)⌋ + 1, n_c − q)
    """
    left = sizes - queries
    wanted = np.floor(draw.random() * np.minimum(MOST_SHOTS, left) + 1).sum()
    support = min(MOST_SUPPORT, int(wanted))
    weights = sizes * np.exp(draw.uniform(np.log(0.5), np.log(2.0), len(sizes)))
    shares = weights / weights.sum()
    shots: Integers = np.minimum(np.floor(shares * (support - len(sizes))).astype(np.int64) + 1, left)
    return shots


def _join(parts: Sequence[Integers]) -> Integers:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
