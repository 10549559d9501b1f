"""Serve feature vectors as a task source: what a frozen network made of text, molecules, sound or images."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from tasks.few_shot import EmptySplit, FewShot, few_shot
from tasks.io.home import PathText
from tasks.random import Integers
from tasks.sources.class_splits import AUTO, SHUFFLE, TEST, SplitLists, choose_splits, hash_splits
from tasks.sources.feature_files import SUFFIXES, Labelled, Names, Vectors, read_vectors, state_of
from tasks.sources.image_layout import Layout
from tasks.sources.image_names import SPLIT_OF
from tasks.store.store_cache import locate_raw_files
from tasks.text import count_of, enumerate_few
from tasks.types import SPLITS, DataRecord, EpisodeShape, Progress, Shape, Split


class Classes(NamedTuple):
    """Vectors sorted by class, the first row of each class and the end of the last, and the classes of each split."""

    x: Vectors
    names: tuple[str, ...]
    bounds: Integers
    splits: Mapping[Split, tuple[int, ...]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Features:
    """A file of feature vectors as few-shot tasks: a row is an example.

    root: a Parquet or CSV file, with a column for each number or one of lists, or an .npz with one array [n, D]; or a
    URI of one. label: the column (or array) of classes. columns: those of the features; empty for the one of lists, or
    else all numbers. split: a column that says for each row train, validation or test; a class lies in one. group: a
    column of what classes belong to, such as a speaker or a species' family: "auto" divides groups, so that classes of
    one are not in two splits.
    splits: "auto" for the column `split` or, without one, a hash of the classes' (or groups') names; else lists as for
    `image_folder`. min_examples: classes with fewer rows are left out.
    cache: where a file behind a URI is copied to; None for $METATRAIN_CACHE or ~/.cache/metatrain.
    """

    root: PathText | None = None
    label: str = "class"
    columns: Sequence[str] = ()
    split: str | None = None
    group: str | None = None
    splits: PathText | SplitLists = AUTO
    min_examples: int = 1
    cache: PathText | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        if self.splits == SHUFFLE:
            raise ValueError("splits: shuffle is for folders of images: set tasks.splits to auto, or to lists")
        if self.min_examples < 1:
            raise ValueError(f"min_examples: {self.min_examples} is below 1: set tasks.min_examples to 1 or more")

    def prepare(self, progress: Progress) -> str:
        """Read the file, and return what is in it."""
        found = self.classes()
        rows, size = found.x.shape
        parts = ", ".join(f"{len(found.splits.get(split, ()))} for {split}" for split in SPLITS)
        return f"features: {rows:,} vectors of {size:,} numbers in {len(found.names)} classes ({parts})"

    def pool(self, split: Split) -> "VectorPool":
        """Return one split's classes."""
        return VectorPool(self, split)

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> FewShot | EmptySplit:
        """Return few-shot episodes over one split's classes."""
        return few_shot(self.pool(split), episode, seed, split)

    def data(self) -> DataRecord:
        """Return the classes of each split, digests of their vectors, and what was left out."""
        found = self.classes()
        used = [number for split in SPLITS for number in found.splits.get(split, ())]
        digests = {found.names[number]: _digest(found, number) for number in used}
        classes = {split: [found.names[number] for number in found.splits.get(split, ())] for split in SPLITS}
        rows = sum(int(found.bounds[number + 1] - found.bounds[number]) for number in used)
        return DataRecord(classes, digests, rows, found.notes)

    def with_splits(self, classes: Mapping[Split, Sequence[str]]) -> Self:
        """Return the same source with these classes in each split."""
        return dataclasses.replace(self, splits=SplitLists(*(tuple(classes.get(split, ())) for split in SPLITS)))

    def classes(self) -> Classes:
        """Return the vectors by class. ValueError: the file cannot be read as such, or divided."""
        if self.root is None:
            raise ValueError(f"root: missing: set tasks.root to a file of feature vectors ({', '.join(SUFFIXES)})")
        path = locate_raw_files(self.root, self.cache, list).localize()
        return _sort(dataclasses.replace(self, cache=None), path, *state_of(path))


@lru_cache(4)
def _sort(source: Features, path: Path, *_state: int) -> Classes:
    """Return the vectors of a file sorted by class, divided into splits; kept for as long as it does not change."""
    read = read_vectors(path, Names(source.label, source.split, source.group, tuple(source.columns)))
    where = str(path)
    names, owners = np.unique(np.array(read.labels, dtype=object), return_inverse=True)
    order = owners.argsort(kind="stable")
    sizes = np.bincount(owners)
    kinds = tuple(map(str, names))
    few = {name: int(size) for name, size in zip(kinds, sizes, strict=True) if size < source.min_examples}
    layout = Layout(dict.fromkeys(kinds, ()), _find_splits(source, where, read, few))
    chosen = choose_splits(where, layout, source.splits, few)
    number = {name: at for at, name in enumerate(kinds)}
    splits = {split: tuple(number[name] for name in chosen.classes.get(split, ())) for split in SPLITS}
    notes = [*chosen.notes]
    if few:
        least = f"fewer than {source.min_examples} rows"
        notes.append(f"left out: {count_of(len(few), 'class', 'classes')} of {least}: {enumerate_few(sorted(few))}")
    if read.ignored:
        notes.append(
            f"left out: {count_of(len(read.ignored), 'column')} without features: {enumerate_few(read.ignored)}"
        )
    bounds = np.concatenate([[0], sizes.cumsum()]).astype(np.int64)
    return Classes(read.x[order], kinds, bounds, splits, tuple(notes))


def _find_splits(source: Features, where: str, read: Labelled, few: Mapping[str, int]) -> Mapping[Split, Sequence[str]]:
    """Return the classes of each split as the file divides them; none where it does not, or where lists do."""
    if source.splits not in (AUTO, TEST):
        return {}
    groups = None if read.groups is None else _owners(where, read.labels, read.groups, "group")
    if read.splits is not None:
        return _read_splits(source, where, read, groups)
    if groups is None or source.splits == TEST:
        return {}
    kept = {name: group for name, group in groups.items() if name not in few}
    named = sorted(set(kept.values()))
    if len(named) < 2 * len(SPLITS):
        reason = f"{count_of(len(named), 'group')} in the column '{source.group}', too few for two in each split"
        raise ValueError(f"group: {where} has {reason}: name another column, or list classes by tasks.splits")
    of_group = hash_splits(where, named)
    return {split: [name for name, group in kept.items() if group in set(of_group[split])] for split in SPLITS}


def _read_splits(
    source: Features, where: str, read: Labelled, groups: Mapping[str, str] | None
) -> Mapping[Split, Sequence[str]]:
    """Return the classes of each split by the column of splits. ValueError: it divides a class, or a group."""
    written = read.splits or []
    unknown = sorted({one for one in written if one.lower() not in SPLIT_OF})
    if unknown:
        reason = f"{enumerate_few(unknown)} in the column '{source.split}' is no split"
        raise ValueError(f"split: {where}: {reason}: write train, validation or test")
    of_class = _owners(where, read.labels, [SPLIT_OF[one.lower()] for one in written], "split")
    found: dict[Split, list[str]] = {split: [name for name, of in of_class.items() if of == split] for split in SPLITS}
    if groups is not None:
        _owners(where, [groups[name] for name in of_class], list(of_class.values()), "split")
        if found["train"] and not all(found.values()):
            missing = next(split for split in SPLITS if not found[split])
            raise ValueError(f"split: {where}: the column '{source.split}' has no {missing}: write it, or leave it out")
    return found


def _owners(where: str, members: Sequence[str], owners: Sequence[str], what: str) -> dict[str, str]:
    """Return the one owner of each member, by name. ValueError: a member has two."""
    found: dict[str, str] = {}
    for member, owner in zip(members, owners, strict=True):
        if found.setdefault(member, owner) != owner:
            two = f"{member!r} is in the {what}s {found[member]!r} and {owner!r}"
            raise ValueError(f"{what}: {where}: {two}: leave it in one")
    return dict(sorted(found.items()))


def _digest(found: Classes, number: int) -> str:
    rows = np.ascontiguousarray(found.x[found.bounds[number] : found.bounds[number + 1]])
    return hashlib.sha256(rows.data).hexdigest()[:32]


@dataclass(frozen=True)
class VectorPool:
    """The classes of one split. Pickled without the vectors, which each process reads."""

    source: Features
    split: Split
    name: str = "features"
    few_remedy: str = "set tasks.min_examples"

    def __getstate__(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @cached_property
    def _classes(self) -> Classes:
        return self.source.classes()

    @cached_property
    def _numbers(self) -> Integers:
        return np.array(self._classes.splits[self.split], dtype=np.int64)

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self._numbers)

    @property
    def example_shape(self) -> Shape:
        """Return (D,)."""
        return (self._classes.x.shape[1],)

    @property
    def min_class_size(self) -> int:
        """Return the number of rows of the smallest class."""
        return int(self.sizes(np.arange(self.num_classes)).min(initial=np.iinfo(np.int64).max))

    def sizes(self, classes: Integers) -> Integers:
        """Return the number of rows of each of `classes`."""
        numbers = self._numbers[classes]
        sizes: Integers = self._classes.bounds[numbers + 1] - self._classes.bounds[numbers]
        return sizes

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        """Return row members[r] of class classes[r], both [R]: float32 [R, D]."""
        return torch.from_numpy(self._classes.x.take(self._classes.bounds[self._numbers[classes]] + members, axis=0))

    def denormalize(self, x: Tensor) -> Tensor:
        """Return the vectors as they are: they are not displayed."""
        return x

    def class_names(self, classes: Integers) -> list[str]:
        """Return the name of each of `classes`."""
        return [self._classes.names[number] for number in self._numbers[classes]]
