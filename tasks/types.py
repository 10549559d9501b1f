"""Define the types in which tasks travel: tensors in NamedTuples, which pass through `torch.func.vmap`.

Shapes are written N for ways, K for shots, Q for queries per class, B for a batch of tasks.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tasks.environments.protocol import Environment

Tree = Any
"""A tensor, or a (nested) dict, tuple or NamedTuple of tensors."""

Shape = tuple[int, ...]

Shapes = Any
"""A Shape, or a (nested) dict or tuple of shapes: those of a tree of tensors."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Progress = Callable[[int, int], None]
"""`progress(done, total)`, called by work that takes long enough to show its progress."""


def no_progress(done: int, total: int) -> None:
    """Ignore the progress: a `Progress` for callers that show none."""


def is_shape(shapes: Shapes) -> bool:
    """Return whether `shapes` is that of one tensor: the leaf of a tree of shapes."""
    return isinstance(shapes, tuple) and all(isinstance(size, int) for size in shapes)


def map_shapes(function: Callable[..., Any], shapes: Shapes, *trees: Tree) -> Tree:
    """Return the tree of `function(shape, *leaves)` for each shape and the leaves of `trees` at its place."""
    return tree_map(function, shapes, *trees, is_leaf=is_shape)


def as_shapes(plain: Any) -> Shapes:
    """Return the shape or shapes that were kept as JSON, which has lists for tuples."""
    if isinstance(plain, dict):
        return {name: as_shapes(value) for name, value in plain.items()}
    return tuple(plain)


def shapes_in(shapes: Shapes) -> list[Shape]:
    """Return the shapes of a tree, in order."""
    return tree_leaves(shapes, is_leaf=is_shape)


class TaskSpec(NamedTuple):
    """Properties that all tasks of a distribution share; static, so that vmap and compilation can use them."""

    kind: Literal["classification", "regression", "environment"]
    ways: int | None
    """Classes per task; None for tasks without classes (regression)."""
    x: Shapes
    """Shape of one query example, without any batch dimension, (C, H, W) for images; or a dict of such shapes."""
    y: Shape
    """Shape of one target: () for a class label."""
    support: Shapes = None
    """Shape or shapes of one support example where it is no other x, such as (312,) for attributes that describe the
    class of images; None where support and query examples are alike."""

    masked: bool = False
    """Whether support sets differ in size: `PaddedExamples`."""
    missing: bool = False
    """Whether inputs may be nan: values that were not measured."""
    ordered: bool = False
    """Whether tasks are sequences, `LabelledSequence`, without a support set."""
    by_step: bool = False
    """Whether sequences are scored step by step, because their classes do not come up equally often."""
    ragged: bool = False
    """Whether tasks differ in their ways and in the numbers of their examples; `ways` is then the most of a task, and
    `tasks.ragged.sample_batches` gives batches of one size."""
    posterior: bool = False
    """Whether tasks for validation and testing hold their exact posterior: `OracleEpisode`, `OracleSequence`."""

    seen: int = 0
    """How many of a task's classes, those of the last labels, are classes of the training split (generalised zero-shot:
    others are unseen); 0 where all classes are of one kind."""

    environment: Environment | None = None
    """What tasks are that are environments, `EnvironmentTask`: x is an observation, y what a policy gives for one."""
    episodes: int = 0
    """How many episodes a policy acts in before each update, in tasks that are environments."""

    def as_plain(self) -> dict[str, Any]:
        """Return what a checkpoint notes of it: plain values, without the environment, which follows from settings."""
        return {name: value for name, value in self._asdict().items() if name not in ("environment", "episodes")}

    @property
    def support_x(self) -> Shapes:
        """Return the shape or shapes of one support example."""
        return self.x if self.support is None else self.support


class Examples(NamedTuple):
    """Labelled examples: x is a tensor (or a tree of them) [n, *spec.x], or *spec.support_x; y is [n, *spec.y]."""

    x: Tree
    y: Tensor


class PaddedExamples(NamedTuple):
    """Examples [n] of which those with `mask` False are padding: sets of several sizes in one batch."""

    x: Tree
    y: Tensor
    mask: Tensor


def members(examples: Examples | PaddedExamples) -> Tensor:
    """Return which rows are examples [n], where padding is False."""
    if isinstance(examples, PaddedExamples):
        return examples.mask
    return torch.ones(examples.y.shape[:1], dtype=torch.bool, device=examples.y.device)


class Episode(NamedTuple):
    """One task: a model adapts to the support set and is evaluated on the query set.

    A batch of tasks is the same type, every tensor with a leading task dimension [B, ...].
    Examples are ordered by class: support.y is [0]*K + [1]*K + ..., query.y has Q of each.
    """

    support: Examples
    query: Examples


class LabelledSequence(NamedTuple):
    """One task whose examples come one after the other: x [T, *spec.x], and y [T], told after each was predicted."""

    x: Tree
    y: Tensor


class OracleEpisode(NamedTuple):
    """An episode with mean and standard deviation of each query target given the support set, [n, *spec.y].

    They are of the exact posterior of the tasks' own distribution. No learner is given them.
    """

    support: Examples | PaddedExamples
    query: Examples
    posterior: tuple[Tensor, Tensor]


class OracleSequence(NamedTuple):
    """A sequence with the log-probabilities of the classes of each step given the steps before it, [T, N].

    They are of the exact posterior of the tasks' own distribution. No learner is given them.
    """

    x: Tree
    y: Tensor
    posterior: Tensor


Task_co = TypeVar("Task_co", covariant=True)


class TaskDistribution(Protocol[Task_co]):
    """An endless sequence of tasks, addressed by index.

    Law: row j of `episodes(indices)` equals `episodes([indices[j]])`, bit for bit, for any other indices in the same
    call, in any process and any order.
    """

    @property
    def spec(self) -> TaskSpec:
        """Return the properties that all tasks of this distribution share."""

    def episodes(self, indices: Sequence[int]) -> Task_co:
        """Return the tasks at `indices`, stacked: every tensor gains a leading dimension len(indices)."""


@dataclass(frozen=True)
class EpisodeShape:
    """Size of an episode: `ways` classes, `shots` support and `queries` query examples of each.

    `ways` is None for tasks without classes (regression), where shots and queries count whole examples.
    """

    ways: int | None = 5
    shots: int = 1
    queries: int = 15

    def __post_init__(self) -> None:
        if self.ways is not None and self.ways < 2:
            raise ValueError(f"ways: {self.ways}-way classification has nothing to tell apart: set ways to 2 or more")
        if self.shots < 1:
            remedy = "set shots to 1 or more; for zero-shot beside descriptions=own, or a file of vectors by class"
            raise ValueError(f"shots: {self.shots} leaves nothing to adapt to: {remedy}")
        if self.queries < 1:
            raise ValueError(f"queries: {self.queries} leaves nothing to evaluate on: set queries to 1 or more")

    @property
    def most_examples(self) -> tuple[int, int]:
        """Return the numbers of support and query examples of a task."""
        return (self.ways or 1) * self.shots, (self.ways or 1) * self.queries


class DataRecord(NamedTuple):
    """What a source draws its tasks from. A run keeps it, and compares it when the run is resumed or evaluated."""

    classes: Mapping[Split, Sequence[str]]
    """The names of the classes of each split."""
    contents: Mapping[str, str]
    """A digest of the examples of each class, in their order."""
    examples: int
    notes: Sequence[str] = ()
    """What was left out or decided, and why; a line each, such as "left out: 36 files of other kinds (36 .tif)"."""
    warnings: Sequence[str] = ()
    """What may make results wrong, such as one image in two splits; a line each."""

    @property
    def fingerprint(self) -> str:
        """Return 32 hexadecimal digits that change with any class, its split or any of its examples."""
        ordered = [[split, [[name, self.contents[name]] for name in names]] for split, names in self.classes.items()]
        return hashlib.sha256(json.dumps(ordered).encode()).hexdigest()[:32]


class TaskSource(Protocol):
    """A source of tasks, named by `tasks.name`: three task distributions that share no class.

    Implementations are frozen dataclasses whose fields are the settings under `tasks.` in a configuration
    (beside `name`, `train` and `test`), picklable, and cheap to build: nothing is read before `prepare` or
    `distribution` is called.
    """

    def prepare(self, progress: Progress) -> str:
        """Do the slow work (decode, build the store) once on this machine; return a line that says what is there."""

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> TaskDistribution[Any]:
        """Return the tasks of one split. ValueError: `episode` asks for more classes or examples than there are."""


class ServesClasses(Protocol):
    """Optional method of a TaskSource whose tasks are made of classes of examples.

    With it, tasks of many sizes (`tasks.ragged`) are drawn from it, and `metatrain data embed` reads it.
    """

    def pool(self, split: Split) -> Any:
        """Return the classes of one split, a `tasks.few_shot.ClassPool`.

        A source that draws tasks of many sizes otherwise has the method `ragged(split, shape, seed)` instead, which
        returns a distribution with `spec.ragged`.
        """


class ListsClasses(Protocol):
    """Optional methods of a TaskSource that can list its classes.

    With them a run keeps the classes of its splits and a fingerprint of its data: resuming refuses other data, and
    evaluation says how many test classes were trained on.
    """

    def data(self) -> DataRecord | None:
        """Return what tasks are drawn from; None where classes cannot be listed with these settings."""

    def with_splits(self, classes: Mapping[Split, Sequence[str]]) -> TaskSource:
        """Return the same source with these classes in each split. May be absent where splits never change."""
