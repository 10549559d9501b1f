"""Find the classes and splits of a folder of images, from its folders, tables (CSV) or lists of classes."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from tasks.io.home import home_path
from tasks.random import stream, uniforms
from tasks.store.archive import OpenArchive
from tasks.types import SPLITS, Split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
_SPLIT_OF: Mapping[str, Split] = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

Classes = Mapping[str, Sequence[str]]
"""The files of each class, by its name."""
Splits = Mapping[Split, Sequence[str]]
"""The names of each split's classes."""


class Layout(NamedTuple):
    """Classes and splits of a folder. `splits` is empty if all classes are in one place."""

    classes: Classes
    splits: Splits


def is_image(name: str) -> bool:
    """Return whether a file is an image, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def common_folder(names: Iterable[str]) -> str:
    """Return the innermost folder that contains all files: "tiny-imagenet-140/train/", or "" for the outermost."""
    levels = zip(*(name.split("/")[:-1] for name in names), strict=False)
    return "".join(f"{level[0]}/" for level in takewhile(lambda level: len(set(level)) == 1, levels))


def find_layout(where: str, contents: OpenArchive, forms: str) -> Layout:
    """Return the classes among the files of the archive `where`. forms: the layouts it may have, for messages.

    A class is named by its folder below its split, or below the innermost folder that contains all images; deeper
    files, as in CLASS/images/IMAGE, belong to it. ValueError: there are no classes.
    """
    images = [name for name in contents.names if is_image(name)]
    if not images:
        raise ValueError(f"{where} holds no images ({', '.join(SUFFIXES)}): set tasks.root to a folder with {forms}")
    start = len(common_folder(images))
    places = {name: name[start:].split("/") for name in images}
    split_folders = _find_split_folders(places)
    if len(split_folders) == len(SPLITS):
        return _merge_splits(split_folders)
    tables = _find_tables(contents.names)
    if len(tables) == len(SPLITS):
        return _merge_splits({split: _read_table(where, contents, table) for split, table in tables.items()})
    if set(split_folders) == {"train"}:
        return Layout(split_folders["train"], {})
    if split_folders:
        return _merge_splits(split_folders)
    classes = _group_files((parts[0], name) for name, parts in places.items() if len(parts) > 1)
    if not classes:
        reason = f"its {len(images)} images are in fewer than two folders"
        raise ValueError(f"{where} holds no classes ({reason}): set tasks.root to a folder with {forms}")
    return Layout(classes, {})


def choose_splits(where: str, layout: Layout, setting: str) -> Splits:
    """Return the classes of each split: the layout's for "auto" (shuffled if it has none), or those of lists.

    setting: "auto", the name of lists that ship with metatrain, or a folder of lists. ValueError: a class is in two
    splits, a listed class has no images, or a split has no classes.
    """
    if setting != "auto":
        splits = read_split_lists(setting)
    elif layout.splits:
        splits = layout.splits
    else:
        splits = shuffle_splits(where, sorted(layout.classes))
    _check_splits(where, layout, splits)
    return splits


def shuffle_splits(where: str, classes: Sequence[str]) -> Splits:
    """Shuffle the classes in a fixed way: 20 % test, 16 % validation and the rest training, each at least two."""
    if len(classes) < 2 * len(SPLITS):
        reason = f"holds {len(classes)} classes, too few for a task of two in each of {', '.join(SPLITS)}"
        raise ValueError(f"{where} {reason}: add classes until there are six, or list them with tasks.splits=FOLDER")
    numbers = uniforms(0, stream("image_folder", "classes"), [0], len(classes))[0]
    order = [classes[i] for i in np.argsort(numbers, kind="stable")]
    test, validation = max(2, round(len(order) * 0.2)), max(2, round(len(order) * 0.16))
    train = len(order) - test - validation
    parts = order[:train], order[train : train + validation], order[train + validation :]
    return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}


def read_split_lists(setting: str) -> Splits:
    """Read the classes of each split from text files, a class a line, that ship with metatrain or are the user's."""
    shipped = {folder.name: folder for folder in (resources.files("tasks") / "splits").iterdir() if folder.is_dir()}
    folder: Traversable = shipped.get(setting) or home_path(setting)
    if not folder.is_dir():
        choices = f"use auto, {', '.join(sorted(shipped))}, or a folder with train.txt, validation.txt and test.txt"
        raise ValueError(f"tasks.splits: there is no list '{setting}': {choices}")
    found: dict[Split, Sequence[str]] = {}
    for stem, split in _SPLIT_OF.items():
        file = folder / f"{stem}.txt"
        if file.is_file():
            lines = _decode_text(str(file), file.read_bytes()).splitlines()
            found[split] = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    return found


def display_names(contents: OpenArchive, classes: Iterable[str]) -> dict[str, str]:
    """Return the display name of each class: "bullfrog/n01641577" if a words.txt has its folder's name."""
    table = min((n for n in contents.names if n.rpartition("/")[2] == "words.txt"), key=_depth, default=None)
    lines = [] if table is None else _decode_text(table, contents.read(table)).splitlines()
    halves = (line.partition("\t") for line in lines)
    words = {key.strip(): text.split(",")[0].strip().replace("/", " ") for key, _, text in halves}
    return {name: f"{words[name]}/{name}" if words.get(name) else name for name in classes}


def _find_split_folders(places: Mapping[str, Sequence[str]]) -> dict[Split, Classes]:
    """Return the classes in each split's folder. places: the parts of each image's path.

    A folder val/images, as in Tiny ImageNet, has no classes.
    """
    return {
        split: classes
        for split in SPLITS
        if (
            classes := _group_files(
                (parts[1], name)
                for name, parts in places.items()
                if len(parts) > 2 and parts[1] != "images" and _SPLIT_OF.get(parts[0]) == split
            )
        )
    }


def _find_tables(names: Iterable[str]) -> dict[Split, str]:
    """Return the outermost train.csv, val.csv and test.csv, or those that exist."""
    found: dict[Split, str] = {}
    for name in sorted(names, key=_depth, reverse=True):
        stem, dot, suffix = name.rpartition("/")[2].partition(".")
        if dot and suffix == "csv" and stem in _SPLIT_OF:
            found[_SPLIT_OF[stem]] = name
    return found


def _read_table(where: str, contents: OpenArchive, table: str) -> Classes:
    """Read the classes of a table with columns filename and label, its files in images/ beside it, or beside it."""
    try:
        rows = list(csv.DictReader(io.StringIO(_decode_text(table, contents.read(table)))))
    except csv.Error as error:
        raise ValueError(f"{where}: {table} is not a table ({error}): replace it by a complete copy") from error
    if not rows or not {"filename", "label"} <= {column for column in rows[0] if column}:
        raise ValueError(f"{where}: {table} has no rows of filename,label: replace it by a complete copy")
    names, folder = set(contents.names), table.rpartition("/")[0]
    pairs = []
    for number, row in enumerate(rows, 2):
        filename, label = row["filename"], row["label"]
        if not filename or not label:
            raise ValueError(f"{where}: {table}, line {number} lacks a filename or a label: fix it")
        places = [f"{part}/{filename}".lstrip("/") for part in (f"{folder}/images", folder)]
        found = next((place for place in places if place in names), None)
        if found is None:
            place = places[0].rpartition("/")[0]
            raise ValueError(f"{where}: {table} lists {filename}, which is not in {place}/: add it")
        pairs.append((label, found))
    return _group_files(pairs)


def _merge_splits(parts: Mapping[Split, Classes]) -> Layout:
    classes = _group_files((name, file) for part in parts.values() for name, files in part.items() for file in files)
    return Layout(classes, {split: sorted(part) for split, part in parts.items()})


def _group_files(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the sorted files of each class from pairs (class, file)."""
    groups: dict[str, set[str]] = {}
    for name, file in pairs:
        groups.setdefault(name, set()).add(file)
    return {name: sorted(files) for name, files in groups.items()}


def _check_splits(where: str, layout: Layout, splits: Splits) -> None:
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
                raise ValueError(f"{where}: {reason}: add them, or remove it from the list that tasks.splits names")
            home[name] = split


def _decode_text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8 ({error.reason}): save it as UTF-8") from error


def _depth(name: str) -> tuple[int, str]:
    return name.count("/"), name
