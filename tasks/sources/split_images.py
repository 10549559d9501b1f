"""Serve images whose splits are fixed and come with every copy: three pickles, folders or tables.

The form in which miniImageNet, CIFAR-FS and FC100 are passed on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.io.home import PathText
from tasks.io.safe_pickle import load_arrays
from tasks.sources.class_splits import AUTO, ChosenSplits, choose_splits
from tasks.sources.image_folder import Channels, check_settings
from tasks.sources.image_layout import Layout
from tasks.sources.image_store import (
    CHANNELS,
    OnBadImage,
    SourceInfo,
    StoredImages,
    StoreSettings,
    find_image_archive,
    plan_store,
    preprocessing,
    split_pool,
)
from tasks.store.archive import Archive, open_archive
from tasks.store.cache import cache_root, cached_key, content_key
from tasks.store.class_pool import StorePool
from tasks.store.store import FORMAT_VERSION, Header, Images, slice_classes, write_store
from tasks.store.store_cache import BuildPlan, LoadedStore, load_or_build, locate_raw_files
from tasks.types import SPLITS, Progress, Split, no_progress

Pickles = tuple[str, str, str]
"""The files of the classes for training, validation and test."""


class PickledSplit(NamedTuple):
    """One split of a pickled copy: uint8 images [n, H, W, 3], or n of [H, W, 3], and the rows of each class."""

    images: Sequence[Images] | Images
    classes: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class SplitImages(StoredImages):
    """Images in three splits, from a copy of the user's own; a subclass says of what.

    info: what it is, and the forms that a copy may have. pickles: the names of the three files, in every form that has
    such.
    """

    root: PathText | None = None
    cache: PathText | None = None
    size: int = 84
    channels: Channels = "rgb"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    on_bad_image: OnBadImage = "error"

    info: ClassVar[SourceInfo]
    pickles: ClassVar[tuple[Pickles, ...]]

    def __post_init__(self) -> None:
        check_settings(self)

    def pool(self, split: Split) -> StorePool:
        """Return one split's classes."""
        return split_pool(self.store(no_progress), split, self.mean, self.std)

    def _load(self, progress: Progress) -> LoadedStore:
        if self.root is None:
            name, forms = self.info.name, self.info.forms
            raise ValueError(f"root: {name} has no official download: set tasks.root to a copy with {forms}")
        chosen = StoreSettings((CHANNELS[self.channels], self.size), cache_root(self.cache), self.on_bad_image)
        settings = [_pickle_preprocessing(chosen.shape), preprocessing(chosen.shape)]
        if self.on_bad_image != "error":
            settings.append(f"on_bad_image: {self.on_bad_image}")
        raw = locate_raw_files(self.root, self.cache, partial(_select_files, self.pickles))
        plan = partial(_plan, self.info, self.pickles, settings=chosen, progress=progress)
        return load_or_build(self.info.name, raw, settings, self.cache, plan)


def read_pickled_split(path: Path, split: Split) -> PickledSplit:
    """Read one split from either kind of pickle. ValueError: it is neither."""
    found = load_arrays(path)
    try:
        part = _parse_split(found if isinstance(found, dict) else {}, split)
        _check_split(part)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        remedy = "replace it by the original file"
        raise ValueError(f"{path} is no split of images ({reason}): {remedy}") from error
    return part


def _parse_split(found: Mapping[str, Any], split: Split) -> PickledSplit:
    if {"image_data", "class_dict"} <= set(found):
        images = found["image_data"]
        members = found["class_dict"].items()
        return PickledSplit(images, {str(name): _to_integers(rows, len(images)) for name, rows in members})
    if not {"data", "labels"} <= set(found):
        raise ValueError("it holds neither image_data and class_dict nor data and labels")
    images, labels = found["data"], _to_integers(found["labels"], len(found["data"]))
    if len(labels) != len(images):
        raise ValueError(f"it has {len(labels)} labels for {len(images)} images")
    names = {int(label): str(name) for name, label in (found.get("catname2label") or {}).items()}
    # Without names, labels may start from zero in each split.
    rows = {names.get(label, f"{split} {label}"): np.flatnonzero(labels == label) for label in set(labels.tolist())}
    return PickledSplit(images, rows)


def _to_integers(values: Any, most: int) -> NDArray[np.int64]:
    """Return any container of at most `most` integers as an array; a forged range could exceed the memory."""
    if len(values) > most:
        raise ValueError(f"it counts {len(values)} images where there are {most}")
    return np.asarray(list(values), np.int64)


def _check_split(part: PickledSplit) -> None:
    several = part.images if isinstance(part.images, list) else list(part.images[:1])
    good = (isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.shape[2:] == (3,) and x.size > 0 for x in several)
    if not several or not all(good):
        raise ValueError("its images are not uint8 of [n, height, width, 3]")
    if not part.classes:
        raise ValueError("it has no classes")
    owner = np.full(len(part.images), -1)
    for number, (name, rows) in enumerate(part.classes.items()):
        if rows.ndim != 1 or not len(rows) or rows.min() < 0 or rows.max() >= len(part.images):
            raise ValueError(f"the class {name!r} has rows beyond its {len(part.images)} images")
        if len(twice := rows[owner[rows] >= 0]):
            other = list(part.classes)[owner[twice[0]]]
            raise ValueError(f"its row {twice[0]} is in both the classes {other!r} and {name!r}")
        owner[rows] = number


def _plan(
    info: SourceInfo, kinds: Sequence[Pickles], root: Path, settings: StoreSettings, progress: Progress
) -> BuildPlan:
    """Return the plan for the form that the copy has."""
    for pickles in kinds:
        missing = [name for name in pickles if not (root / name).exists()]
        if not missing:
            return _plan_from_pickles(info, root, pickles, settings, progress)
        if len(missing) < len(pickles):
            raise ValueError(f"{root} lacks {' and '.join(missing)}: replace it by a complete copy")
    archive = find_image_archive(root, info.forms)

    def choose(layout: Layout, few: Mapping[str, int]) -> ChosenSplits:
        if not layout.splits:
            raise ValueError(f"{archive.path} does not say which classes are for training: use {info.forms}")
        return choose_splits(str(archive.path), layout, AUTO, few)

    return plan_store(info, archive, choose, settings, progress)


def _select_files(kinds: Sequence[Pickles], names: Sequence[str]) -> Sequence[str]:
    """Return the pickles among the files of a root, or all files if it has none."""
    for pickles in kinds:
        if set(pickles) & set(names):
            return [name for name in names if name in pickles]
    return names


def _plan_from_pickles(
    info: SourceInfo, root: Path, pickles: Pickles, settings: StoreSettings, progress: Progress
) -> BuildPlan:
    shape = settings.shape
    recipe = f"{_pickle_preprocessing(shape)}; rows in order of split and class"
    with open_archive(Archive(root)) as files:

        def read_all() -> str:
            return content_key([files.checksum(name) for name in pickles], recipe, FORMAT_VERSION)

        key = cached_key(settings.cache, info.name, [files.stamp(name) for name in pickles], recipe, read_all)

    def build(path: Path) -> None:
        from PIL import Image  # which training does without

        from tasks.store.decoding import compute_rows, resize_square

        parts = [read_pickled_split(root / name, split) for name, split in zip(pickles, SPLITS, strict=True)]
        header = _header(info, root, parts, shape)
        rows = list(_ordered_images(parts))

        def row(number: int) -> Images:
            return resize_square(Image.fromarray(rows[number]), shape[1], shape[0])

        write_store(path, header, compute_rows(len(rows), header.image_shape, row, progress))

    return BuildPlan(key, build)


def _ordered_images(parts: Sequence[PickledSplit]) -> Iterator[Images]:
    """Yield all images in order of split and class name."""
    for part in parts:
        for name in sorted(part.classes):
            for row in part.classes[name].tolist():
                yield part.images[row]


def _header(info: SourceInfo, root: Path, parts: Sequence[PickledSplit], shape: tuple[int, int]) -> Header:
    """Return the header of the store of `_ordered_images`. ValueError: a class is in two splits."""
    sizes: dict[str, int] = {}
    splitting: dict[Split, tuple[int, ...]] = {}
    for split, part in zip(SPLITS, parts, strict=True):
        splitting[split] = tuple(range(len(sizes), len(sizes) + len(part.classes)))
        for name in sorted(part.classes):
            if name in sizes:
                raise ValueError(f"{root}: the class {name!r} is in two splits: replace it by a complete copy")
            sizes[name] = len(part.classes[name])
    return Header(
        info.name,
        (shape[0], shape[1], shape[1]),
        slice_classes(sizes.items()),
        {"classes": splitting},
        info.source,
        info.citation,
        _pickle_preprocessing(shape),
    )


def _pickle_preprocessing(shape: tuple[int, int]) -> str:
    return f"{'RGB' if shape[0] == 3 else 'grey'}; Lanczos of the central square to {shape[1]}×{shape[1]}"
