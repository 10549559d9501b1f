"""Serve tasks of several sources as one: each task is drawn from one of them (Triantafillou et al. 2020)."""

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from torch.utils._pytree import tree_map

from tasks.few_shot import ClassPool, EmptySplit, draw_examples, few_shot, gather_tasks
from tasks.io.home import PathText
from tasks.joined_pool import JoinedPool
from tasks.ragged import TaskBatch, ragged_tasks, sample_batches
from tasks.ragged_shape import RaggedShape
from tasks.random import Integers, stream, uniforms
from tasks.sources.class_sources import CLASS_SOURCES
from tasks.sources.class_splits import SplitLists
from tasks.text import count_of
from tasks.transformed import resize_pool
from tasks.types import SPLITS, DataRecord, Episode, EpisodeShape, Progress, Shape, Split, TaskSpec


@dataclass(frozen=True)
class MixedSource:
    """One source of a mixture.

    name: of the source. root, cache: where it lies, if it lies anywhere. settings: others of that source, such as
    {size: 32, splits: test}. weight: training tasks are drawn from it in proportion to it.
    """

    name: str = "omniglot"
    root: PathText | None = None
    cache: PathText | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in CLASS_SOURCES:
            raise ValueError(
                f"name: no source of classes is called '{self.name}': set one of {', '.join(CLASS_SOURCES)}"
            )
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight: {self.weight:g} is no share of tasks: set more than 0, or remove the source")
        for name in ("root", "cache"):
            if name in self.settings:
                raise ValueError(f"settings.{name}: stands beside the settings of a source: set {name} there")
        self.source()

    def source(self) -> Any:
        """Return the source. ValueError: it has no such settings."""
        places = {name: getattr(self, name) for name in ("root", "cache") if getattr(self, name) is not None}
        try:
            return CLASS_SOURCES[self.name](**places, **self.settings)
        except TypeError as error:
            raise ValueError(f"settings: {self.name}: {error}: remove that one") from error


def _two_of_drawings() -> dict[str, MixedSource]:
    return {name: MixedSource(name) for name in ("omniglot", "strokes")}


@dataclass(frozen=True)
class Mixture:
    """Tasks of several sources, each task from one of them.

    sources: by names of your own. In training a task's source is drawn by weight; validation and test tasks are of each
    source in turn, equally many of each, and results are told by source. A source without classes in a split has no
    tasks there: {splits: test} keeps one for testing. size, channels: of the images of all sources, which are resized
    (`tasks.transformed`); None where all have one already.
    """

    sources: dict[str, MixedSource] = field(default_factory=_two_of_drawings)
    size: int | None = None
    channels: Literal["grey", "rgb"] | None = None

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise ValueError(f"sources: {len(self.sources)} are no mixture: set tasks.sources to two or more, by name")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: {self.size} is no side of an image: set 1 or more pixels")

    def prepare(self, progress: Progress) -> str:
        """Prepare each source, and return what there is."""
        told = []
        for name, one in self.sources.items():
            with _settings_of(name):
                told.append(f"{name}: {one.source().prepare(progress)}")
        return "\n".join([f"mixture of {count_of(len(told), 'source')}", *told])

    def data(self) -> DataRecord:
        """Return what each source draws from, its classes as NAME/CLASS.

        A source that lists no classes stands as one in each split, NAME/train, with its settings for its examples.
        """
        records: dict[str, DataRecord] = {}
        for name, one in self.sources.items():
            with _settings_of(name):
                records[name] = _record(one.source())
        classes = {
            split: [f"{name}/{one}" for name, record in records.items() for one in record.classes.get(split, ())]
            for split in SPLITS
        }
        contents = {
            f"{name}/{one}": digest for name, record in records.items() for one, digest in record.contents.items()
        }
        notes, warnings = (
            [f"{name}: {line}" for name, record in records.items() for line in getattr(record, kind)]
            for kind in ("notes", "warnings")
        )
        return DataRecord(classes, contents, sum(record.examples for record in records.values()), notes, warnings)

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> "MixedTasks | EmptySplit":
        """Return tasks of one size; without any classes, a split that has no tasks."""
        return self._mixed(split, lambda pool: few_shot(pool, episode, seed, split), seed)

    def ragged(self, split: Split, shape: RaggedShape, seed: int) -> "MixedTasks | EmptySplit":
        """Return tasks of many sizes; without any classes, a split that has no tasks."""
        return self._mixed(split, lambda pool: ragged_tasks(pool, shape, seed, split), seed)

    def with_splits(self, classes: Mapping[Split, Sequence[str]]) -> Self:
        """Return the same sources with these classes, NAME/CLASS, in each split, where a source's can be chosen."""
        chosen = {}
        for name, one in self.sources.items():
            own = [tuple(_within(name, classes.get(split, ()))) for split in SPLITS]
            fixed = not hasattr(one.source(), "with_splits") or not any(own)
            settings = one.settings if fixed else {**one.settings, "splits": SplitLists(*own)}
            chosen[name] = dataclasses.replace(one, settings=settings)
        return dataclasses.replace(self, sources=chosen)

    def _mixed(self, split: Split, tasks_of: Any, seed: int) -> "MixedTasks | EmptySplit":
        found = self._pools(split)
        pools = {name: pool for name, pool in found.items() if pool.num_classes} or found
        tasks = {}
        for name, pool in pools.items():
            with _settings_of(name):
                tasks[name] = tasks_of(pool)
        empty = next((one for one in tasks.values() if isinstance(one, EmptySplit)), None)
        if empty is not None:
            return empty
        return MixedTasks(tasks, tuple(self.sources[name].weight for name in pools), split, seed)

    def _pools(self, split: Split) -> dict[str, ClassPool]:
        pools: dict[str, Any] = {}
        for name, one in self.sources.items():
            with _settings_of(name):
                pools[name] = one.source().pool(split)
        shapes: dict[str, Shape] = {name: tuple(pool.example_shape) for name, pool in pools.items()}
        targets = {name: self._target(shape) for name, shape in shapes.items()}
        if len(set(targets.values())) > 1:
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(f"size: examples differ in shape ({found}): set tasks.size and tasks.channels, of images")
        for name, target in targets.items():
            if len(shapes[name]) == 3 or self.size is not None or self.channels is not None:
                with _settings_of(name):
                    pools[name] = resize_pool(pools[name], target)
        return pools

    def _target(self, shape: Shape) -> Shape:
        """Return the shape that examples of `shape` are brought to."""
        if len(shape) != 3:
            return shape
        channels = shape[0] if self.channels is None else {"grey": 1, "rgb": 3}[self.channels]
        return (channels, *(shape[1:] if self.size is None else (self.size, self.size)))


@dataclass(frozen=True)
class MixedTasks:
    """The tasks of one split, addressed by (seed, split, index): those of one source at that index."""

    tasks: Mapping[str, Any]
    weights: tuple[float, ...]
    split: Split
    seed: int

    @cached_property
    def spec(self) -> TaskSpec:
        """Return the spec of the tasks of all sources: the most ways of any."""
        specs: list[TaskSpec] = [one.spec for one in self.tasks.values()]
        ways = max(spec.ways or 0 for spec in specs)
        return specs[0]._replace(ways=ways, ragged=any(spec.ragged for spec in specs))

    @property
    def num_classes(self) -> int:
        """Return the number of classes of all sources."""
        return sum(one.num_classes for one in self.tasks.values())

    def numbers(self, indices: Sequence[int]) -> Integers:
        """Return the number of the source of each task [B]: drawn by weight in training, else each in turn."""
        index: Integers = np.asarray(indices, dtype=np.int64)
        if self.split != "train":
            return index % len(self.tasks)
        ends = np.cumsum(self.weights) / np.sum(self.weights)
        drawn = uniforms(self.seed, stream("mixture", self.split), index, 1)[:, 0]
        found: Integers = np.minimum(np.searchsorted(ends, drawn, side="right"), len(self.tasks) - 1)
        return found

    def sources(self, indices: Sequence[int]) -> list[str]:
        """Return the name of the source of each task."""
        names = list(self.tasks)
        return [names[number] for number in self.numbers(indices)]

    def batches(self, indices: Sequence[int]) -> list[TaskBatch]:
        """Return the tasks at `indices` in batches of one source and one size, in the order of their first tasks."""
        numbers, found = self.numbers(indices), []
        for number, tasks in enumerate(self.tasks.values()):
            places = np.flatnonzero(numbers == number).tolist()
            for part in sample_batches(tasks, [indices[place] for place in places]) if places else ():
                found.append(part._replace(places=tuple(places[at] for at in part.places)))
        return sorted(found, key=lambda batch: batch.places)

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return tasks of one size, stacked. ValueError: their sizes differ."""
        if self._joined is not None:
            pool, shape, numbers = self._joined, next(iter(self.tasks.values())).episode, self.numbers(indices)
            size = (shape.ways or 0, shape.shots + shape.queries)
            among = pool.starts[numbers], np.diff(pool.starts)[numbers]
            drawn = draw_examples(pool, self.seed, stream("few-shot", self.split), indices, size, among)
            return gather_tasks(pool, *drawn, shape)
        parts = self.batches(indices)
        order = torch.tensor([place for part in parts for place in part.places]).argsort()
        try:
            stacked: Episode = tree_map(lambda *leaves: torch.cat(leaves)[order], *(part.tasks for part in parts))
        except RuntimeError as error:
            raise ValueError("tasks of several sizes cannot be stacked: use sample_batches") from error
        return stacked

    def task_classes(self, indices: Sequence[int]) -> Integers:
        """Return the numbers of the classes of the tasks at `indices`: [B, most ways], -1 where a task has fewer."""
        found = np.full((len(indices), self.spec.ways or 0), -1, np.int64)
        before = 0
        numbers = self.numbers(indices)
        for number, tasks in enumerate(self.tasks.values()):
            places = np.flatnonzero(numbers == number).tolist()
            classes = tasks.task_classes([indices[place] for place in places])
            found[places, : classes.shape[1]] = np.where(classes >= 0, classes + before, -1)
            before += tasks.num_classes
        return found

    def class_names(self, index: int) -> list[str]:
        """Return the display names of the classes of the task at `index`, in order of label."""
        names: list[str] = self.tasks[self.sources([index])[0]].class_names(index)
        return names

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        """Return images as they are: they are in [0, 1]."""
        return x

    @cached_property
    def _joined(self) -> JoinedPool | None:
        """Return the classes of all sources where tasks have one size; they are drawn together, which is faster."""
        if self.spec.ragged:
            return None
        return JoinedPool(tuple(one.pool for one in self.tasks.values()))


def _within(name: str, classes: Sequence[str]) -> list[str]:
    """Return the names, within one source, of those of `classes` that are its."""
    return [one.removeprefix(f"{name}/") for one in classes if one.startswith(f"{name}/")]


@contextmanager
def _settings_of(name: str) -> Iterator[None]:
    """Name in an error the settings of one source of the mixture, where it names those of a source that is alone."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = re.sub(r"\btasks\.(root|cache)\b", rf"tasks.sources.{name}.\1", str(error))
        text = re.sub(r"\btasks\.(?!sources|train|test)(\w+)", rf"tasks.sources.{name}.settings.\1", text)
        raise ValueError(f"tasks.sources.{name}: {text}") from error


def _record(source: Any) -> DataRecord:
    """Return what a source draws from; of one that lists no classes a class for each split, and no examples."""
    told = getattr(source, "data", None)
    found: DataRecord | None = None if told is None else told()
    if found is not None:
        return found
    digests: dict[str, str] = {
        split: hashlib.sha256(f"{split} {source!r}".encode()).hexdigest()[:32] for split in SPLITS
    }
    return DataRecord({split: [split] for split in SPLITS}, digests, 0)
