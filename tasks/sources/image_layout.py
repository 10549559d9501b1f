"""What a folder of images says of itself: which images make a class, and which classes a split."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks.random import stream, uniforms
from tasks.store.archive import Contents
from tasks.types import SPLITS, Split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
_CALLED: Mapping[str, Split] = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

Classes = Mapping[str, Sequence[str]]
"""The files of each class, by its name."""
Splits = Mapping[Split, Sequence[str]]
"""The names of each split's classes."""


class Layout(NamedTuple):
    """What a folder holds. `splits` is empty where all its classes lie in one place."""

    classes: Classes
    splits: Splits


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name."""
    return name.lower().endswith(SUFFIXES)


def shared_folder(names: Iterable[str]) -> str:
    """The innermost folder that all files lie in: "tiny-imagenet-140/train/", or "" for the outermost."""
    folders = sorted({name.rpartition("/")[0] for name in names})
    first, last = (folders[i].split("/") if folders and folders[i] else [] for i in (0, -1))
    depth = 0
    while depth < min(len(first), len(last)) and first[depth] == last[depth]:
        depth += 1
    return "".join(f"{part}/" for part in first[:depth])


def find_layout(where: str, contents: Contents, forms: str) -> Layout:
    """The classes among the files of an archive that is called `where`. forms: what it may hold, for messages.

    A class is called by the folder it has below its split, or below the innermost folder that holds all images; what
    lies deeper, as in CLASS/images/IMAGE, belongs to it. Raises ValueError where there is none.
    """
    images = [name for name in contents.names if is_image(name)]
    if not images:
        raise ValueError(f"{where} holds no images ({', '.join(SUFFIXES)}): set tasks.root to a folder with {forms}")
    start = len(shared_folder(images))
    places = {name: name[start:].split("/") for name in images}
    split_folders = _split_folders(places)
    if len(split_folders) == len(SPLITS):
        return _joined(split_folders)
    tables = _tables(contents.names)
    if len(tables) == len(SPLITS):
        return _joined({split: _listed(where, contents, table) for split, table in tables.items()})
    if set(split_folders) == {"train"}:
        return Layout(split_folders["train"], {})
    if split_folders:
        return _joined(split_folders)
    classes = _grouped((parts[0], name) for name, parts in places.items() if len(parts) > 1)
    if not classes:
        reason = f"its {len(images)} images lie in fewer than two folders"
        raise ValueError(f"{where} holds no classes ({reason}): set tasks.root to a folder with {forms}")
    return Layout(classes, {})


def choose_splits(where: str, layout: Layout, setting: str) -> Splits:
    """The classes of each split: as the layout says for "auto" (else shuffled), or as a list says.

    setting: "auto", the name of a list that we ship, or a folder of lists. Raises ValueError, with the remedy, for a
    class in two splits, a listed class without images, a split without classes.
    """
    if setting != "auto":
        splits = named_lists(setting)
    elif layout.splits:
        splits = layout.splits
    else:
        splits = shuffled_splits(where, sorted(layout.classes))
    _check(where, layout, splits)
    return splits


def shuffled_splits(where: str, classes: Sequence[str]) -> Splits:
    """A fixed shuffle of the classes: 20 % test, 16 % validation and the rest training, each two classes or more."""
    if len(classes) < 2 * len(SPLITS):
        reason = f"holds {len(classes)} classes, too few for a task of two in each of {', '.join(SPLITS)}"
        raise ValueError(f"{where} {reason}: add classes until there are six, or list them with tasks.splits=FOLDER")
    numbers = uniforms(0, stream("image_folder", "classes"), [0], len(classes))[0]
    order = [classes[i] for i in np.argsort(numbers, kind="stable")]
    test, validation = max(2, round(len(order) * 0.2)), max(2, round(len(order) * 0.16))
    train = len(order) - test - validation
    parts = order[:train], order[train : train + validation], order[train + validation :]
    return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}


def named_lists(setting: str) -> Splits:
    """The classes of each split from text files, a class a line: a list that we ship, or a folder of the user's."""
    shipped = {folder.name: folder for folder in (resources.files("tasks") / "splits").iterdir() if folder.is_dir()}
    folder: Traversable = shipped.get(setting) or Path(setting).expanduser()
    if not folder.is_dir():
        choices = f"choose auto, {', '.join(sorted(shipped))}, or a folder with train.txt, validation.txt and test.txt"
        raise ValueError(f"tasks.splits: there is no list '{setting}': {choices}")
    found: dict[Split, Sequence[str]] = {}
    for called, split in _CALLED.items():
        file = folder / f"{called}.txt"
        if file.is_file():
            lines = _text(str(file), file.read_bytes()).splitlines()
            found[split] = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    return found


def shown_names(contents: Contents, classes: Iterable[str]) -> dict[str, str]:
    """What a person would call each class: "bullfrog/n01641577" where a words.txt knows its folder's name."""
    table = min((n for n in contents.names if n.rpartition("/")[2] == "words.txt"), key=_depth, default=None)
    lines = [] if table is None else _text(table, contents.read(table)).splitlines()
    halves = (line.partition("\t") for line in lines)
    words = {key.strip(): said.split(",")[0].strip().replace("/", " ") for key, _, said in halves}
    return {name: f"{words[name]}/{name}" if words.get(name) else name for name in classes}


def _split_folders(places: Mapping[str, Sequence[str]]) -> dict[Split, Classes]:
    """places: the parts of each image's path. A folder val/images, as Tiny ImageNet has, tells no classes."""
    return {
        split: classes
        for split in SPLITS
        if (
            classes := _grouped(
                (parts[1], name)
                for name, parts in places.items()
                if len(parts) > 2 and parts[1] != "images" and _CALLED.get(parts[0]) == split
            )
        )
    }


def _tables(names: Iterable[str]) -> dict[Split, str]:
    """The outermost train.csv, val.csv and test.csv, as far as there are any."""
    found: dict[Split, str] = {}
    for name in sorted(names, key=_depth, reverse=True):
        stem, dot, suffix = name.rpartition("/")[2].partition(".")
        if dot and suffix == "csv" and stem in _CALLED:
            found[_CALLED[stem]] = name
    return found


def _listed(where: str, contents: Contents, table: str) -> Classes:
    """The classes of a table with columns filename and label, its files in images/ beside it, or right beside it."""
    try:
        rows = list(csv.DictReader(io.StringIO(_text(table, contents.read(table)))))
    except csv.Error as error:
        raise ValueError(f"{where}: {table} is not a table ({error}): put a whole copy there") from error
    if not rows or not {"filename", "label"} <= {column for column in rows[0] if column}:
        raise ValueError(f"{where}: {table} has no rows of filename,label: put a whole copy there")
    names, folder = set(contents.names), table.rpartition("/")[0]
    pairs = []
    for number, row in enumerate(rows, 2):
        filename, label = row["filename"], row["label"]
        if not filename or not label:
            raise ValueError(f"{where}: {table}, line {number} lacks a filename or a label: mend it")
        places = [f"{part}/{filename}".lstrip("/") for part in (f"{folder}/images", folder)]
        found = next((place for place in places if place in names), None)
        if found is None:
            raise ValueError(
                f"{where}: {table} lists {filename}, which is not in {places[0].rpartition('/')[0]}/: add it"
            )
        pairs.append((label, found))
    return _grouped(pairs)


def _joined(parts: Mapping[Split, Classes]) -> Layout:
    classes = _grouped((name, file) for part in parts.values() for name, files in part.items() for file in files)
    return Layout(classes, {split: sorted(part) for split, part in parts.items()})


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """(class, file) to the sorted files of each class."""
    groups: dict[str, set[str]] = {}
    for name, file in pairs:
        groups.setdefault(name, set()).add(file)
    return {name: sorted(files) for name, files in groups.items()}


def _check(where: str, layout: Layout, splits: Splits) -> None:
    home: dict[str, Split] = {}
    for split in SPLITS:
        if not splits.get(split):
            remedy = "add them, or set tasks.splits=FOLDER with train.txt, validation.txt and test.txt"
            raise ValueError(f"{where}: the split '{split}' has no classes: {remedy}")
        for name in splits[split]:
            if name in home:
                reason = f"the class {name!r} is in both '{home[name]}' and '{split}'"
                raise ValueError(f"{where}: {reason}: leave it in one (tasks.splits=FOLDER of lists overrides folders)")
            if name not in layout.classes:
                reason = f"the class {name!r}, listed in '{split}', has no images"
                raise ValueError(f"{where}: {reason}: add them, or take it off the list that tasks.splits names")
            home[name] = split


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8 ({error.reason}): save it as such") from error


def _depth(name: str) -> tuple[int, str]:
    return name.count("/"), name
