"""Sample episodes whose support set describes the classes: zero-shot, generalised zero-shot, or beside examples.

A class has one description, a vector: attributes (Lampert et al. 2009), word vectors, the strokes of a pen. Zero-shot
episodes have it alone as support; queries are examples of the classes.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.described_shape import DescribedShape
from tasks.few_shot import ClassPool, EmptySplit, draw_examples
from tasks.random import Integers, Reals, normals, stream, uniforms
from tasks.sources.feature_files import Names, read_vectors
from tasks.text import enumerate_few, part_of
from tasks.types import Episode, EpisodeShape, Examples, Shape, Split, TaskSpec
from tasks.wrapped_pool import WrappedPool

OWN = "own"
DESCRIPTION, EXAMPLE = "description", "example"
"""The names of the parts of a support example, where there are both."""
_MOST_NAMES = 10**5
"""Classes up to which a file is asked for all of them before the first task."""
_MOST_CLASSES = 1000
"""Training classes that the standard deviation of descriptions is of."""


@dataclass(frozen=True)
class FileDescriptions:
    """The vectors of a file, by the names of classes. ValueError: the file is none, or has no such class."""

    path: str

    @cached_property
    def _found(self) -> tuple[Any, dict[str, int]]:
        try:
            read = read_vectors(Path(self.path), Names("class"))
        except ValueError as error:
            reason = str(error).removeprefix("root: ").removeprefix("label: ").replace("tasks.root", "descriptions")
            raise ValueError(f"descriptions: {reason}") from error
        twice = [name for name, count in Counter(read.labels).items() if count > 1]
        if twice:
            raise ValueError(f"{self.path} describes {enumerate_few(twice)} twice: leave one row of each")
        return read.x, {name: row for row, name in enumerate(read.labels)}

    @property
    def shape(self) -> Shape:
        """Return (d,)."""
        return (self._found[0].shape[1],)

    def digests(self) -> dict[str, str]:
        """Return a digest of the vector of each class."""
        x, rows = self._found
        return {name: hashlib.sha256(np.ascontiguousarray(x[row]).data).hexdigest() for name, row in rows.items()}

    def of(self, names: Sequence[str]) -> Tensor:
        """Return the vectors of classes [R, d]."""
        x, rows = self._found
        missing = [name for name in names if name not in rows]
        if missing:
            few = enumerate_few(sorted(set(missing)))
            raise ValueError(f"{self.path} has no row of the class {few}: add it, or leave the class out")
        return torch.from_numpy(x[[rows[name] for name in names]])


def described_tasks(source: Any, name: str, split: Split, shape: DescribedShape, seed: int) -> "Described | EmptySplit":
    """Return the episodes of one split of `source`, by descriptions. ValueError: its classes have none."""
    part = part_of(split)
    if not hasattr(source, "pool"):
        raise ValueError(f"{part}.descriptions: {name} has no classes of examples: remove it")
    pool = source.pool(split)
    if not pool.num_classes:
        return EmptySplit(pool, EpisodeShape(shape.ways, 1, 1), split)
    if shape.descriptions == OWN and not hasattr(pool, "descriptions"):
        reason = f"the classes of {name} have no descriptions of their own"
        raise ValueError(f"{part}.descriptions: {reason}: set a file of vectors by class (Parquet, CSV or npz)")
    found = Described(pool, source.pool("train"), shape, seed, split)
    if shape.descriptions != OWN and pool.num_classes <= _MOST_NAMES:
        found.describe(np.arange(pool.num_classes))
    return found


@dataclass(frozen=True)
class Described:
    """The episodes of one split, addressed by (seed, split, index); support and query are ordered by class.

    pool: of the split's classes; train: of the training classes, of which a task has the last `shape.seen`.
    """

    pool: Any
    train: Any
    shape: DescribedShape
    seed: int
    split: Split

    def __post_init__(self) -> None:
        shape, part = self.shape, part_of(self.split)
        if shape.seen and not shape.held_out:
            reason = "tasks.train.held_out: 0, and tasks.test.seen asks for examples that training leaves out"
            raise ValueError(f"{reason}: train with a share of each class held out, such as 0.2")
        for what, pool, ways in (("", self.pool, shape.ways - shape.seen), ("seen ", self.train, shape.seen)):
            if ways > pool.num_classes:
                have = f"{pool.name} has {pool.num_classes}"
                raise ValueError(f"{part}.ways: {ways} {what}classes of a task; {have}: lower {part}.ways or .seen")
        for what, pool, ways in (("", self._own, 1), (" of those held out", self._seen, shape.seen)):
            each = shape.shots + shape.queries
            if ways and each > pool.min_class_size:
                have = f"the smallest of {pool.name} has {pool.min_class_size}{what}"
                raise ValueError(
                    f"{part}.queries: tasks need {each} examples of a class, and {have}: lower queries or shots"
                )

    @property
    def spec(self) -> TaskSpec:
        """Return the spec: support examples are vectors, or dicts of a vector and an example."""
        x, d = self.pool.example_shape, self._description_shape
        support = d if not self.shape.shots else {DESCRIPTION: d, EXAMPLE: x}
        return TaskSpec("classification", self.shape.ways, x, (), support, seen=self.shape.seen)

    @property
    def num_classes(self) -> int:
        """Return the number of classes that tasks are drawn from, those of training that are seen included."""
        return int(self.pool.num_classes + (self.train.num_classes if self.shape.seen else 0))

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return the tasks at `indices`, stacked.

        Support.x without examples [B, N, d]; with K shots a dict of "description" [B, N·K, d] and "example"
        [B, N·K, *x]. query.x [B, N·Q, *x].
        """
        shots, queries = self.shape.shots, self.shape.queries
        owners, x = self._examples(indices)
        y = torch.arange(self.shape.ways).expand(len(indices), -1)
        query = Examples(x[:, :, shots:].flatten(1, 2), y.repeat_interleave(queries, 1))
        given = self._descriptions(owners)
        if not shots:
            return Episode(Examples(given, y), query)
        support = {DESCRIPTION: given.repeat_interleave(shots, 1), EXAMPLE: x[:, :, :shots].flatten(1, 2)}
        return Episode(Examples(support, y.repeat_interleave(shots, 1)), query)

    def task_classes(self, indices: Sequence[int]) -> Integers:
        """Return the numbers of the classes of each task [B, N]; training classes are numbered after the split's."""
        parts = [
            draw_examples(pool, self.seed, self._stream(what), indices, (ways, 1))[0] + first
            for what, pool, ways, first in self._parts
        ]
        return np.concatenate(parts, 1)

    def class_names(self, index: int) -> list[str]:
        """Return the display names of the classes of the task at `index`, in order of label."""
        classes, own = self.task_classes([index])[0], self.shape.ways - self.shape.seen
        names: list[str] = self.pool.class_names(classes[:own])
        return [*names, *self.train.class_names(classes[own:] - self.pool.num_classes)]

    def denormalize(self, x: Tensor) -> Tensor:
        """Map images [..., C, H, W] of an episode back to values in [0, 1], for display."""
        found: Tensor = self.pool.denormalize(x)
        return found

    @cached_property
    def _own(self) -> ClassPool:
        """Return the split's own classes: in training without the examples that are held out."""
        held_out = self.shape.held_out if self.split == "train" else 0.0
        return PartOfPool(self.pool, 0.0, 1 - held_out) if held_out else self.pool

    @cached_property
    def _seen(self) -> ClassPool:
        """Return the training classes with the examples that training leaves out."""
        return PartOfPool(self.train, 1 - self.shape.held_out, 1.0)

    @property
    def _parts(self) -> list[tuple[str, ClassPool, int, int]]:
        """Return of unseen and of seen classes: a name, the pool, how many a task has, and the first's number."""
        own = ("own", self._own, self.shape.ways - self.shape.seen, 0)
        seen = ("seen", self._seen, self.shape.seen, int(self.pool.num_classes))
        return [own, seen] if self.shape.seen else [own]

    def _stream(self, what: str) -> int:
        return stream("described", self.split, what)

    def _examples(self, indices: Sequence[int]) -> tuple[list[Integers], Tensor]:
        """Return the classes of each part of a task [B, n], and the examples of all [B, N, K + Q, *x]."""
        each, owners, x = self.shape.shots + self.shape.queries, [], []
        for what, pool, ways, _ in self._parts:
            classes, members = draw_examples(pool, self.seed, self._stream(what), indices, (ways, each))
            found = pool.examples(classes.repeat(each), members.reshape(-1))
            owners.append(classes)
            x.append(found.view(len(indices), ways, each, *found.shape[1:]))
        return owners, torch.cat(x, 1)

    def _descriptions(self, owners: Sequence[Integers]) -> Tensor:
        """Return the descriptions of the classes of each part of a task, with their noise [B, N, d]."""
        parts = []
        for (what, _, _, _), classes in zip(self._parts, owners, strict=True):
            pool, split = (self.train, "train") if what == "seen" else (self.pool, self.split)
            found = self._describe(pool, classes.reshape(-1))
            if self.shape.noise:
                found = found + self.shape.noise * self._scale * self._noise(split, classes.reshape(-1), found.shape[1])
            parts.append(found.view(*classes.shape, -1))
        return torch.cat(parts, 1)

    def describe(self, classes: Integers) -> Tensor:
        """Return the descriptions of classes of the split, without noise [R, d]. ValueError: one has none."""
        return self._describe(self.pool, classes)

    def _noise(self, split: str, classes: Integers, size: int) -> Tensor:
        """Return standard normal numbers [R, d], always the same for a class."""
        numbers: Reals = uniforms(self.seed, stream("descriptions", split), classes, 2 * size)
        return torch.from_numpy(normals(numbers[:, :size], numbers[:, size:])[0]).float()

    def _describe(self, pool: Any, classes: Integers) -> Tensor:
        if self.shape.descriptions == OWN:
            found: Tensor = pool.descriptions(classes)
            return found
        return self._file.of(pool.class_names(classes))

    @cached_property
    def _file(self) -> FileDescriptions:
        return FileDescriptions(self.shape.descriptions)

    @property
    def _description_shape(self) -> Shape:
        if self.shape.descriptions != OWN:
            return self._file.shape
        found: Shape = self.pool.description_shape
        return found

    @cached_property
    def _scale(self) -> Tensor:
        """Return the standard deviation of each number of the descriptions, over training classes [d]."""
        classes = np.arange(min(_MOST_CLASSES, self.train.num_classes))
        return self._describe(self.train, classes).std(0)


@dataclass(frozen=True)
class PartOfPool(WrappedPool):
    """The classes of a pool with a part of the examples of each: those from the share `first` on, up to `last`."""

    first: float
    last: float

    @property
    def min_class_size(self) -> int:
        """Return the number of examples of the smallest class: of the smallest of the whole pool."""
        size = self.pool.min_class_size
        return int(size * self.last) - int(size * self.first)

    def sizes(self, classes: Integers) -> Integers:
        """Return the number of examples of each of `classes`."""
        found: Integers = self._bound(classes, self.last) - self._bound(classes, self.first)
        return found

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        """Return example members[r] of the part of class classes[r], both [R]."""
        return super().examples(classes, members + self._bound(classes, self.first))

    def _bound(self, classes: Integers, share: float) -> Integers:
        found: Integers = np.floor(self.pool.sizes(classes) * share).astype(np.int64)
        return found
