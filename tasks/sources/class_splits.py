"""Choose the classes of each split: as the folder has them, from lists, or by a hash of each class's name."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

import numpy as np

from tasks.io.home import home_path
from tasks.io.json_documents import check_json, parse_json
from tasks.random import stream, uniforms
from tasks.sources.image_layout import Layout
from tasks.sources.image_names import SPLIT_OF, Splits
from tasks.text import count_of, decode_text, enumerate_few
from tasks.types import SPLITS, Split

AUTO, TEST, SHUFFLE = "auto", "test", "shuffle"
_SHARES: Mapping[Split, float] = {"test": 0.2, "validation": 0.16}
_LEAST = 2
"""Classes that each split is given, where classes are divided by their names."""
_LEAVE_IN_ONE = "leave it in one (tasks.splits=FOLDER of lists overrides folders)"


@dataclass(frozen=True)
class SplitLists:
    """The classes of each split, by name. A list of test classes alone serves evaluation."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.train or self.validation or self.test):
            raise ValueError("train: this list and the others are empty: name classes, or set tasks.splits to auto")

    def by_split(self) -> Splits:
        """Return the lists of classes by split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


class ChosenSplits(NamedTuple):
    """The classes of each split; some may have none. notes: what was left out or decided, and why, a line each."""

    classes: Splits
    notes: tuple[str, ...] = ()


def choose_splits(where: str, layout: Layout, setting: str | SplitLists, few: Mapping[str, int]) -> ChosenSplits:
    """Return the classes of each split.

    setting: "auto", "test", "shuffle", the name of lists that ship with metatrain, a folder of lists, or lists. few:
    classes that are left out for their few examples. ValueError: a class is in two splits, a listed class has no
    examples, or a split has no classes, except where there are test classes alone.
    """
    notes: tuple[str, ...] = ()
    kept = [name for name in sorted(layout.classes) if name not in few]
    divided = setting in (AUTO, SHUFFLE) and not layout.splits
    if few and len(kept) < (_LEAST * len(SPLITS) if divided else _LEAST):
        reason = f"{len(few)} of its {count_of(len(layout.classes), 'class', 'classes')} have too few examples"
        raise ValueError(f"{where}: {reason}: lower tasks.min_examples, or add some")
    if divided:
        splits = hash_splits(where, kept) if setting == AUTO else shuffle_splits(where, kept)
    elif setting == TEST and not layout.splits.get("test"):
        splits = {"test": kept}
    elif setting in (AUTO, SHUFFLE, TEST):
        splits, notes = layout.splits, ()
        if setting != TEST:
            splits, notes = _cut_missing_splits(where, layout.splits)
    else:
        lists = setting.by_split() if isinstance(setting, SplitLists) else read_split_lists(setting)
        splits = {split: [_resolve(name, layout) for name in names] for split, names in lists.items() if names}
    if isinstance(setting, SplitLists):
        absent = "restore them, or set tasks.splits to classes that are there, or to auto"
    else:
        absent = "add them, or remove it from the list that tasks.splits names"
    _check_splits(where, layout, splits, absent)
    splits = {split: [name for name in names if name not in few] for split, names in splits.items()}
    listed = set().union(*splits.values())
    if unlisted := [name for name in kept if name not in listed]:
        notes = (
            *notes,
            f"left out: {count_of(len(unlisted), 'class', 'classes')} in no split: {enumerate_few(unlisted)}",
        )
    return ChosenSplits(splits, notes)


def hash_splits(where: str, classes: Sequence[str]) -> Splits:
    """Divide classes by a hash of each name: 20 % test, 16 % validation and the rest training, each at least two.

    A class's place does not depend on the others, so that a folder that grows does not reshuffle; only where a split
    would have fewer than two classes is it given those whose hashes are nearest.
    """
    return _divide(where, classes, _SHARES)


def _divide(where: str, classes: Sequence[str], shares: Mapping[Split, float]) -> dict[Split, list[str]]:
    """Take shares of the classes, in order of the hashes of their names; the rest is for training."""
    if len(classes) < _LEAST * (len(shares) + 1):
        names = ", ".join(split for split in SPLITS if split == "train" or split in shares)
        reason = f"holds {count_of(len(classes), 'class', 'classes')}, too few for a task of two in each of {names}"
        remedy = f"add classes until there are {'six' if len(shares) == 2 else 'four'}"
        raise ValueError(f"{where} {reason}: {remedy}, or list them with tasks.splits=FOLDER")
    order = hash_order(classes)
    parts: dict[Split, list[str]] = {}
    start, threshold, left = 0, 0.0, len(shares)
    for split, share in shares.items():
        threshold += share
        stop = sum(_place(name) < threshold for name in order)
        stop = min(max(stop, start + _LEAST), len(order) - _LEAST * left)
        parts[split] = sorted(order[start:stop])
        start, left = stop, left - 1
    return {"train": sorted(order[start:]), **parts}


def hash_order(classes: Iterable[str]) -> list[str]:
    """Return classes in order of the hashes of their names."""
    return sorted(classes, key=lambda name: (_place(name), name))


def _place(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64


def _cut_missing_splits(where: str, splits: Splits) -> tuple[Splits, tuple[str, ...]]:
    """Take the classes of splits that a folder lacks from those for training, by a hash of each name."""
    missing = {split: share for split, share in _SHARES.items() if not splits.get(split)}
    if not splits.get("train") or not missing:
        return splits, ()
    divided = _divide(f"{where}: train", splits["train"], missing)
    notes = tuple(
        f"there is no {split} split: {len(divided[split])} of train's {len(splits['train'])} classes are taken for it, "
        f"by a hash of their names: {enumerate_few(divided[split])}"
        for split in missing
    )
    for name in splits["train"]:
        for split in SPLITS[1:]:
            if split not in missing and name in splits.get(split, ()):
                reason = f"the class {name!r} is in both 'train' and '{split}'"
                raise ValueError(f"{where}: {reason}: {_LEAVE_IN_ONE}")
    return {**splits, **divided}, notes


def shuffle_splits(where: str, classes: Sequence[str]) -> Splits:
    """Shuffle the classes as runs of version 0.1 did: 20 % test, 16 % validation and the rest training."""
    if len(classes) < _LEAST * len(SPLITS):
        reason = f"holds {len(classes)} classes, too few for a task of two in each of {', '.join(SPLITS)}"
        raise ValueError(f"{where} {reason}: add classes until there are six, or list them with tasks.splits=FOLDER")
    numbers = uniforms(0, stream("image_folder", "classes"), [0], len(classes))[0]
    order = [classes[i] for i in np.argsort(numbers, kind="stable")]
    test, validation = max(2, round(len(order) * 0.2)), max(2, round(len(order) * 0.16))
    train = len(order) - test - validation
    parts = order[:train], order[train : train + validation], order[train + validation :]
    return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}


def read_split_lists(setting: str) -> Splits:
    """Read the classes of each split from lists that ship with metatrain or are the user's.

    setting: their name; a folder of text files, a class a line; or a JSON file {"train": […], "valid": […],
    "test": […]}, as of Meta-Dataset.
    """
    shipped = {folder.name: folder for folder in (resources.files("tasks") / "splits").iterdir() if folder.is_dir()}
    folder: Traversable = shipped.get(setting) or home_path(setting)
    if setting.lower().endswith(".json") and folder.is_file():
        return _read_json_lists(setting, folder.read_bytes())
    if not folder.is_dir():
        choices = f"use auto, {', '.join(sorted(shipped))}, or a folder with train.txt, validation.txt and test.txt"
        raise ValueError(f"tasks.splits: there is no list '{setting}': {choices}")
    found: dict[Split, list[str]] = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        stem, _, suffix = file.name.lower().rpartition(".")
        if suffix == "txt" and stem in SPLIT_OF and file.is_file():
            lines = decode_text(str(file), file.read_bytes()).splitlines()
            found.setdefault(SPLIT_OF[stem], []).extend(line.strip() for line in lines if line.strip())
    return {split: list(dict.fromkeys(found[split])) for split in SPLITS if split in found}


def _read_json_lists(where: str, content: bytes) -> Splits:
    remedy = 'use {"train": ["CLASS", …], "valid": […], "test": […]}'
    lists: dict[str, list[str | int]] = check_json(
        parse_json(content, where, remedy), dict[str, list[str | int]], where, remedy
    )
    unknown = [name for name in lists if name.lower() not in SPLIT_OF]
    if unknown:
        raise ValueError(f"{where}: {unknown[0]!r} is no split: {remedy}")
    found = {SPLIT_OF[name.lower()]: list(dict.fromkeys(map(str, names))) for name, names in lists.items()}
    return {split: found[split] for split in SPLITS if found.get(split)}


def _resolve(name: str, layout: Layout) -> str:
    """Return the class that a line of a list names: by itself, by its number, or as the last folder of a path.

    Lists of Meta-Dataset add titles to classes that are numbers elsewhere: "090.canna lily".
    """
    number = name.partition(".")[0]
    if name in layout.classes or (number.isdecimal() and number in layout.classes):
        return name if name in layout.classes else number
    parts = name.replace("\\", "/").strip("/").split("/")
    # A run's record has display names: "bullfrog/n01641577".
    endings = ("/".join(parts[at:]) for at in range(len(parts)))
    return next((ending for ending in endings if ending in layout.classes), name)


def _check_splits(where: str, layout: Layout, splits: Splits, absent: str) -> None:
    """Check that each split has classes of its own. absent: the remedy for a listed class without examples."""
    home: dict[str, Split] = {}
    for split in SPLITS:
        if not splits.get(split) and (splits.get("train") or not splits.get("test")):
            remedy = "add them, or set tasks.splits=FOLDER with train.txt, validation.txt and test.txt"
            raise ValueError(f"{where}: the split '{split}' has no classes: {remedy}")
        for name in splits.get(split, ()):
            if name in home:
                reason = f"the class {name!r} is in both '{home[name]}' and '{split}'"
                raise ValueError(f"{where}: {reason}: {_LEAVE_IN_ONE}")
            if name not in layout.classes:
                reason = f"the class {name!r}, listed in '{split}', has no examples"
                raise ValueError(f"{where}: {reason}: {absent}")
            home[name] = split
