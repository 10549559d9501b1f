"""Serve images whose splits are fixed and come with every copy: a few packed files, folders or tables.

The form in which miniImageNet, tieredImageNet, CIFAR-FS and FC100 are passed on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.io.home import PathText
from tasks.io.safe_pickle import load_arrays
from tasks.sources.class_splits import AUTO, ChosenSplits, choose_splits
from tasks.sources.image_layout import Layout, find_layout
from tasks.sources.image_settings import CHANNELS, Channels, OnBadImage, check_bad_image, check_settings
from tasks.sources.image_store import (
    ImageFormat,
    SourceInfo,
    StoredImages,
    StoreSettings,
    describe_few,
    find_image_archive,
    plan_store,
    preprocessing,
    split_pool,
    write_images,
)
from tasks.store.archive import Archive, open_archive
from tasks.store.cache import cache_root, cached_key, content_key
from tasks.store.class_pool import StorePool
from tasks.store.store import FORMAT_VERSION, Header, Images, slice_classes
from tasks.store.store_cache import BuildPlan, LoadedStore, load_or_build, locate_raw_files
from tasks.types import SPLITS, Progress, Split, no_progress


class PackedSplit(NamedTuple):
    """One split of a packed copy, and the rows of each class.

    images: uint8 [n, H, W, 3] or [n, H, W], n of [H, W, 3], or n encoded files.
    """

    images: Sequence[Images] | Sequence[bytes] | Images
    classes: Mapping[str, NDArray[np.int64]]


class PackedForm(NamedTuple):
    """A form of a copy in a few files: those of training, validation and test, and how those of a split are read.

    The first of a split's files has its images.
    """

    files: tuple[tuple[str, ...], ...]
    read: Callable[[Sequence[Path], Split], PackedSplit]

    @property
    def names(self) -> list[str]:
        """Return the names of all files."""
        return list(dict.fromkeys(name for part in self.files for name in part))


@dataclass(frozen=True)
class SplitImages(StoredImages):
    """Images in three splits, from a copy of the user's own; a subclass says of what.

    info: what it is, and the forms that a copy may have. packed: those of these forms that consist of a few files.
    """

    root: PathText | None = None
    cache: PathText | None = None
    size: int = 84
    channels: Channels = "rgb"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    on_bad_image: OnBadImage = "error"

    info: ClassVar[SourceInfo]
    packed: ClassVar[tuple[PackedForm, ...]]

    def __post_init__(self) -> None:
        check_settings(self)
        check_bad_image(self)

    def pool(self, split: Split) -> StorePool:
        """Return one split's classes."""
        return split_pool(self.store(no_progress), split, self.mean, self.std)

    def _load(self, progress: Progress) -> LoadedStore:
        if self.root is None:
            name, forms = self.info.name, self.info.forms
            raise ValueError(f"root: {name} has no official download: set tasks.root to a copy with {forms}")
        chosen = StoreSettings((CHANNELS[self.channels], self.size), cache_root(self.cache), self.on_bad_image)
        settings = [_packed_preprocessing(chosen.shape), preprocessing(chosen.shape)]
        if self.on_bad_image != "error":
            settings.append(f"on_bad_image: {self.on_bad_image}")
        raw = locate_raw_files(self.root, self.cache, partial(_select_files, self.packed))
        plan = partial(_plan, self.info, self.packed, settings=chosen, progress=progress)
        return load_or_build(self.info.name, raw, settings, self.cache, plan)


def pickled_form(train: str, validation: str, test: str) -> PackedForm:
    """Return the form of three pickles of either of the usual kinds."""
    return PackedForm(((train,), (validation,), (test,)), lambda paths, split: read_pickled_split(paths[0], split))


def read_pickled_split(path: Path, split: Split) -> PackedSplit:
    """Read one split from either kind of pickle. ValueError: it is neither."""
    found = load_arrays(path)
    try:
        part = _parse_split(found if isinstance(found, dict) else {}, split)
        check_split(part)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        remedy = "replace it by the original file"
        raise ValueError(f"{path} is no split of images ({reason}): {remedy}") from error
    return part


def _parse_split(found: Mapping[str, Any], split: Split) -> PackedSplit:
    if {"image_data", "class_dict"} <= set(found):
        images = found["image_data"]
        members = found["class_dict"].items()
        return PackedSplit(images, {str(name): _to_integers(rows, len(images)) for name, rows in members})
    if not {"data", "labels"} <= set(found):
        raise ValueError("it holds neither image_data and class_dict nor data and labels")
    images, labels = found["data"], _to_integers(found["labels"], len(found["data"]))
    if len(labels) != len(images):
        raise ValueError(f"it has {len(labels)} labels for {len(images)} images")
    names = {int(label): str(name) for name, label in (found.get("catname2label") or {}).items()}
    # Without names, labels may start from zero in each split.
    rows = {names.get(label, f"{split} {label}"): np.flatnonzero(labels == label) for label in set(labels.tolist())}
    return PackedSplit(images, rows)


def _to_integers(values: Any, most: int) -> NDArray[np.int64]:
    """Return any container of at most `most` integers as an array; a forged range could exceed the memory."""
    if len(values) > most:
        raise ValueError(f"it counts {len(values)} images where there are {most}")
    return np.asarray(list(values), np.int64)


def check_split(part: PackedSplit) -> None:
    """Check the images of a split, where these are arrays, and its classes. ValueError: they are not as expected."""
    several = part.images if isinstance(part.images, list) else list(part.images[:1])
    good = (
        isinstance(x, bytes)
        or (isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.shape[2:] == (3,) and x.size > 0)
        for x in several
    )
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
    info: SourceInfo, forms: Sequence[PackedForm], root: Path, settings: StoreSettings, progress: Progress
) -> BuildPlan:
    """Return the plan for the form that the copy has."""
    form = _find_form(forms, [name for form in forms for name in form.names if (root / name).exists()])
    if form is not None:
        missing = [name for name in form.names if not (root / name).exists()]
        if missing:
            raise ValueError(f"{root} lacks {' and '.join(missing)}: replace it by a complete copy")
        return plan_packed(info, root, form, settings, progress)
    archive = find_image_archive(root, info.forms)

    def choose(layout: Layout, few: Mapping[str, int]) -> ChosenSplits:
        if not layout.splits:
            raise ValueError(f"{archive.path} does not say which classes are for training: use {info.forms}")
        return choose_splits(str(archive.path), layout, AUTO, few)

    return plan_store(info, archive, ImageFormat(partial(find_layout, forms=info.forms)), choose, settings, progress)


def _find_form(forms: Sequence[PackedForm], names: Sequence[str]) -> PackedForm | None:
    """Return the first form that is there as a whole, or else in part: forms may share files beside their images."""
    there = set(names)
    whole = (form for form in forms if set(form.names) <= there)
    in_part = (form for form in forms if there & {part[0] for part in form.files})
    return next(whole, next(in_part, None))


def _select_files(forms: Sequence[PackedForm], names: Sequence[str]) -> Sequence[str]:
    """Return the packed files among those of a root, or all files if it has none."""
    form = _find_form(forms, names)
    return names if form is None else [name for name in names if name in form.names]


def plan_packed(
    info: SourceInfo, root: Path, form: PackedForm, settings: StoreSettings, progress: Progress
) -> BuildPlan:
    """Return the plan for the store of the images in a few files of the folder `root`."""
    shape = settings.shape
    recipe = f"{_packed_preprocessing(shape)}; rows in order of split and class"
    if settings.min_examples > 1:
        recipe += f"; classes of at least {settings.min_examples}"
    if settings.on_bad_image == "skip":
        recipe += "; without images that do not decode"
    with open_archive(Archive(root)) as files:

        def read_all() -> str:
            return content_key([files.checksum(name) for name in form.names], recipe, FORMAT_VERSION)

        key = cached_key(settings.cache, info.name, [files.stamp(name) for name in form.names], recipe, read_all)

    def build(path: Path) -> None:
        from tasks.store.decoding import try_rows  # Pillow, which training does without

        parts = [
            form.read([root / name for name in names], split) for names, split in zip(form.files, SPLITS, strict=True)
        ]
        parts, few = _drop_few(parts, settings.min_examples)
        header = _header(info, root, parts, shape)
        rows = list(_ordered_rows(parts))
        names = [f"image {number} of {split}" for split, _, number in rows]

        def row(number: int) -> Images:
            _, part, at = rows[number]
            return _convert(part.images[at], shape)

        images, bad = try_rows(names, header.image_shape, row, progress)
        write_images(path, str(root), header, images, bad, settings, few)

    return BuildPlan(key, build)


def _drop_few(parts: Sequence[PackedSplit], least: int) -> tuple[list[PackedSplit], list[str]]:
    """Return splits without classes of fewer than `least` images, and a line that names these, if there are any."""
    few = {name: len(rows) for part in parts for name, rows in part.classes.items() if len(rows) < least}
    kept = [
        part._replace(classes={name: rows for name, rows in part.classes.items() if name not in few}) for part in parts
    ]
    return kept, [describe_few(few, least)] if few else []


def _convert(image: Images | bytes, shape: tuple[int, int]) -> Images:
    """Return an image as the store has it. UndecodableError: it is encoded, and damaged."""
    from PIL import Image

    from tasks.store.decoding import explain_decode_errors, image_decoder, resize_square

    channels, size = shape
    if isinstance(image, bytes):
        with explain_decode_errors():
            return image_decoder(size, channels)(image)
    return resize_square(Image.fromarray(image), size, channels)


def _ordered_rows(parts: Sequence[PackedSplit]) -> Iterator[tuple[Split, PackedSplit, int]]:
    """Yield where each image is, in order of split and class name."""
    for split, part in zip(SPLITS, parts, strict=True):
        for name in sorted(part.classes):
            for row in part.classes[name].tolist():
                yield split, part, row


def _header(info: SourceInfo, root: Path, parts: Sequence[PackedSplit], shape: tuple[int, int]) -> Header:
    """Return the header of the store of `_ordered_rows`. ValueError: a class is in two splits."""
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
        _packed_preprocessing(shape),
    )


def _packed_preprocessing(shape: tuple[int, int]) -> str:
    return f"{'RGB' if shape[0] == 3 else 'grey'}; Lanczos of the central square to {shape[1]}×{shape[1]}"
