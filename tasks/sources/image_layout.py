"""Find the classes of a folder of images, the splits that its folders or tables (CSV) name, and what is left out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

from tasks.sources.image_names import SPLIT_OF, SUFFIXES, Classes, Splits, group_files, is_image
from tasks.sources.image_tables import (
    LabelledFile,
    find_tables,
    find_whole_table,
    is_table,
    read_table,
    tell_rows_apart,
)
from tasks.store.archive import Crop, OpenArchive
from tasks.text import count_of, decode_text, enumerate_few
from tasks.types import SPLITS, Split


class Layout(NamedTuple):
    """Classes and splits of a folder. `splits` is empty if all classes are in one place.

    left_out: the files that belong to no class and why, a line for each reason. crops: the parts of files that some of
    the members of classes are, by these members' names. groups, whole_groups: as in `Header`, by the classes' names.
    """

    classes: Classes
    splits: Splits
    left_out: tuple[str, ...] = ()
    crops: Mapping[str, Crop] = MappingProxyType({})
    groups: Sequence[Sequence[str]] = ()
    whole_groups: bool = False


def common_folder(names: Iterable[str]) -> str:
    """Return the innermost folder that contains all files: "tiny-imagenet-140/train/", or "" for the outermost."""
    levels = zip(*(name.split("/")[:-1] for name in names), strict=False)
    return "".join(f"{level[0]}/" for level in takewhile(lambda level: len(set(level)) == 1, levels))


def find_layout(where: str, contents: OpenArchive, forms: str) -> Layout:
    """Return the classes among the files of the archive `where`. forms: the layouts it may have, for messages.

    A class is named by its folder below its split, or below the innermost folder that contains all images; deeper
    files, as in CLASS/images/IMAGE, belong to it. ValueError: there are no classes, or a file has two labels.
    """
    images = [name for name in contents.names if is_image(name)]
    if not images:
        beside = f", but {unread[0]}" if (unread := _describe_unread(contents.names, images)) else ""
        known = ", ".join(SUFFIXES)
        raise ValueError(f"{where} holds no images ({known}){beside}: set tasks.root to a folder with {forms}")
    tables = find_tables(contents.names)
    shared = common_folder(images)
    places = {name: name[len(shared) :].split("/") for name in images}
    folders = _find_split_folders(places)
    few_tables = bool(tables) and not folders and all(is_table(contents, table) for table in tables.values())
    if len(folders) < len(SPLITS) and (len(tables) == len(SPLITS) or few_tables):
        return _read_tables(where, contents, tables, images)
    if set(folders) == {"train"}:
        layout = Layout(folders["train"], {})
    elif folders:
        layout = _merge_splits(folders)
    else:
        classes = group_files((parts[0], name) for name, parts in places.items() if len(parts) > 1)
        whole = None if classes else find_whole_table(contents.names)
        if whole is not None:
            return _read_tables(where, contents, {"train": whole}, images)._replace(splits={})
        if not classes:
            reason = f"its {len(images)} images are in fewer than two folders"
            raise ValueError(f"{where} holds no classes ({reason}): set tasks.root to a folder with {forms}")
        alone = SPLIT_OF.get(PurePosixPath(shared).name.lower(), "train")
        layout = Layout(classes, {} if alone == "train" else {alone: sorted(classes)})
    unplaced = _describe_unplaced(images, layout, places)
    return layout._replace(left_out=(*_describe_unread(contents.names, images), *unplaced))


def display_names(contents: OpenArchive, classes: Iterable[str]) -> dict[str, str]:
    """Return the display name of each class: "bullfrog/n01641577" if a words.txt has its folder's name."""
    table = min((n for n in contents.names if n.rpartition("/")[2] == "words.txt"), key=_depth, default=None)
    lines = [] if table is None else decode_text(table, contents.read(table)).splitlines()
    halves = (line.partition("\t") for line in lines)
    words = {key.strip(): text.split(",")[0].strip().replace("/", " ") for key, _, text in halves}
    return {name: f"{words[name]}/{name}" if words.get(name) else name for name in classes}


def _find_split_folders(places: Mapping[str, Sequence[str]]) -> dict[Split, Classes]:
    """Return the classes in each split's folder. places: the parts of each image's path.

    A folder val/images, as in Tiny ImageNet, has no classes. Where other folders lie beside test/ or val/ and there is
    no train/, these are names of classes.
    """
    found: dict[Split, Classes] = {}
    for split in SPLITS:
        classes = group_files(
            (parts[1], name)
            for name, parts in places.items()
            if len(parts) > 2 and parts[1] != "images" and SPLIT_OF.get(parts[0].lower()) == split
        )
        if classes:
            found[split] = classes
    others = {parts[0] for parts in places.values() if len(parts) > 1 and parts[0].lower() not in SPLIT_OF}
    return {} if others and "train" not in found else found


def _read_tables(where: str, contents: OpenArchive, tables: Mapping[Split, str], images: Sequence[str]) -> Layout:
    rows: list[LabelledFile] = []
    for split, table in tables.items():
        rows += read_table(where, contents, table, split)
    repeated = tell_rows_apart(where, rows)
    parts = {split: group_files((row.label, row.file) for row in rows if row.split == split) for split in tables}
    layout = _merge_splits(parts)
    listed = {row.file for row in rows}
    left_out = list(_describe_unread(contents.names, [*images, *listed, *tables.values()]))
    if unlisted := [name for name in images if name not in listed]:
        left_out.append(f"{count_of(len(unlisted), 'image')} that no table lists: {enumerate_few(unlisted)}")
    if repeated:
        left_out.append(f"{count_of(repeated, 'line')} of tables that repeat an earlier one")
    return layout._replace(left_out=tuple(left_out))


def _merge_splits(parts: Mapping[Split, Classes]) -> Layout:
    classes = group_files((name, file) for part in parts.values() for name, files in part.items() for file in files)
    return Layout(classes, {split: sorted(part) for split, part in parts.items()})


def _describe_unread(names: Iterable[str], read: Iterable[str]) -> list[str]:
    """Describe the files that are no images by their suffix, and the folders that hold nothing else."""
    images = set(read)
    other = [name for name in names if name not in images and name.rpartition("/")[2] != "words.txt"]
    if not other:
        return []
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in other)
    kinds = ", ".join(
        f"{count} {suffix}" for suffix, count in sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))[:6]
    )
    more = "" if len(suffixes) <= 6 else f" and {len(suffixes) - 6} further kinds"
    with_images = {folder for name in images for folder in _folders_of(name)}
    empty = sorted({folder for name in other if (folder := name.rpartition("/")[0]) and folder not in with_images})
    without = f", {count_of(len(empty), 'folder')} without any image ({enumerate_few(empty)})" if empty else ""
    return [f"{count_of(len(other), 'file')} of other kinds ({kinds}{more}){without}"]


def _folders_of(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _describe_unplaced(images: Sequence[str], layout: Layout, places: Mapping[str, Sequence[str]]) -> list[str]:
    """Describe the images that belong to no class, by the folder in which they are."""
    placed = {file for files in layout.classes.values() for file in files}
    groups: dict[str, list[str]] = {}
    for name in images:
        if name not in placed:
            groups.setdefault(places[name][0] if len(places[name]) > 1 else "", []).append(name)
    found = []
    for folder, names in sorted(groups.items()):
        known = folder.lower() in SPLIT_OF
        reason = "beside the folders of classes" if not folder else f"in {folder}/, "
        if folder:
            reason += "outside folders of classes" if known else "which is not a split (train, val and test are)"
        found.append(f"{count_of(len(names), 'image')} {reason}: {enumerate_few(names)}")
    return found


def _depth(name: str) -> tuple[int, str]:
    return name.count("/"), name
