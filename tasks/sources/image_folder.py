"""A folder of images as a task source: any classes of photographs, drawings or scans, unpacked or in a zip.

From PNG, JPEG, BMP, WebP and GIF to a store of square images of one size.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from tasks.few_shot import FewShot
from tasks.sources.image_layout import (
    Layout,
    Splits,
    choose_splits,
    find_layout,
    is_image,
    named_lists,
    shared_folder,
    shown_names,
)
from tasks.store.archive import Archive, Contents, opened
from tasks.store.cache import cache_root, content_key, remembered_key
from tasks.store.class_pool import StorePool
from tasks.store.decoding import decode_files, image_decoder
from tasks.store.store import FORMAT_VERSION, ClassSlice, Header, Store, write_store
from tasks.store.store_cache import Plan, raw_at, stored
from tasks.types import SPLITS, EpisodeShape, Progress, Split, no_progress

Channels = Literal["rgb", "grey"]
CHANNELS: dict[str, int] = {"rgb": 3, "grey": 1}

_LARGEST = 2**28
"""Bytes of a single image beyond which it is taken for an attack on memory."""


class Origin(NamedTuple):
    """What the stores of one source have in common."""

    name: str
    source: str
    citation: str
    forms: str
    """What their root may hold, for messages."""


_ORIGIN = Origin(
    "image_folder",
    "a folder of images of the user's own",
    "",
    "CLASS/IMAGE in one place, or in each of train/, val/ and test/, or train.csv, val.csv and test.csv "
    "(filename,label) beside images/",
)


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images of one's own as a task source, a folder for each class.

    root: a folder, a zip, or a folder with one zip in it, or a URI of either, such as s3://BUCKET/FOLDER. It is only
    ever read.
    cache: where the store is kept; None for $METATRAIN_CACHE or ~/.cache/metatrain. A URI, such as s3://BUCKET/FOLDER,
    is a cache that machines share; each keeps what it fetches in the folder that None names.
    size: the side of an image in pixels: the shorter side is resized to it, the longer cut off on both ends.
    channels: "rgb" or "grey". mean, std: what x in [0, 1] is normalised by, (x - mean) / std, as one number or one for
    each channel; empty for 0 and 1.
    splits: which classes are for training, validation and test. "auto" for what the root says, by folders (train/,
    val/ or validation/, test/) or tables (train.csv, val.csv, test.csv), and where it says nothing a fixed shuffle into
    64, 16 and 20 %; else a folder with train.txt, validation.txt and test.txt, or the name of such a list that we ship:
    "tiny-imagenet-140" (80, 20 and 40 classes of Tiny ImageNet, by a fixed shuffle of their sorted ids).
    """

    root: str | None = None
    cache: str | None = None
    size: int = 84
    channels: Channels = "rgb"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    splits: str = "auto"

    def __post_init__(self) -> None:
        mean, std = checked_moments(self.size, self.channels, self.mean, self.std)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    def prepare(self, progress: Progress) -> str:
        """Build the store unless it is there. Returns a line that says what it holds and where it lies."""
        return described(self.store(progress))

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> FewShot:
        """Few-shot episodes over one split's classes."""
        return FewShot(split_pool(self.store(no_progress), split, self.mean, self.std), episode, seed, split)

    def store(self, progress: Progress) -> Store:
        """The store of this root, built first where this machine has not got it."""
        if self.root is None:
            forms = _ORIGIN.forms
            raise ValueError(f"root: there are no images without it: set tasks.root to a folder or a zip with {forms}")
        shape = (CHANNELS[self.channels], self.size)
        raw = raw_at(self.root, self.cache, list)

        def plan(here: Path) -> Plan:
            archive = image_archive(here, _ORIGIN.forms)

            def choose(layout: Layout) -> Splits:
                return choose_splits(str(archive.path), layout, self.splits)

            return folder_plan(_ORIGIN, archive, choose, shape, cache_root(self.cache), progress)

        # By what the lists say, where they are used before anything is read.
        splits = self.splits if self.splits == "auto" or raw.listed is None else named_lists(self.splits)
        return stored(_ORIGIN.name, raw, [preprocessing(shape), splits], self.cache, plan)


def checked_moments(
    size: int, channels: str, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """mean and std as tuples. Raises ValueError, with the remedy, for what no images can be delivered as."""
    if size < 1:
        raise ValueError(f"size: an image of {size} pixels shows nothing: set tasks.size to 1 or more, such as 84")
    if channels not in CHANNELS:
        raise ValueError(f"channels: there are no '{channels}' images: set tasks.channels to {' or '.join(CHANNELS)}")
    count = CHANNELS[channels]
    for field, values in (("mean", mean), ("std", std)):
        if len(values) not in {0, 1, count}:
            counts = "1 number" if count == 1 else f"1 or {count} numbers"
            raise ValueError(f"{field}: {len(values)} numbers for {count} channels: set tasks.{field} to {counts}")
    if not all(0 <= value <= 1 for value in mean):
        raise ValueError(f"mean: {list(mean)} is no mean of values in [0, 1]: set tasks.mean to such (x/255)")
    if not all(0 < value < math.inf for value in std):
        raise ValueError(f"std: nothing can be divided by {list(std)}: set tasks.std to positive numbers")
    return tuple(mean), tuple(std)


def image_archive(root: Path, forms: str) -> Archive:
    """Where the images are: `root`, or the one zip in it. Raises ValueError, with the remedy, where there is none.

    forms: what it may hold, for messages.
    """
    if not root.exists():
        raise ValueError(f"{root} is not there: set tasks.root to a folder or a zip with {forms}")
    archive = Archive(root)
    if archive.is_zip:
        return archive
    if not root.is_dir():
        raise ValueError(f"{root} is neither a folder nor a zip: unpack it, and set tasks.root to where it is")
    with opened(archive) as contents:
        zips = [name for name in contents.names if "/" not in name and name.lower().endswith(".zip")]
        if not zips or any(map(is_image, contents.names)):
            return archive
    if len(zips) > 1:
        raise ValueError(f"{root} holds no images, but {' and '.join(zips)}: set tasks.root to one of them")
    return Archive(root / zips[0])


def folder_plan(
    origin: Origin,
    archive: Archive,
    choose: Callable[[Layout], Splits],
    shape: tuple[int, int],
    cache: Path,
    progress: Progress,
) -> Plan:
    """How the store of the images in an archive is made.

    choose: from what the archive says to the classes of each split; others are left out. shape: (channels, size).
    cache: this machine's, where it is remembered what was in a folder.
    """
    with opened(archive) as contents:
        layout = find_layout(str(archive.path), contents, origin.forms)
        splits = choose(layout)
        classes = {name: layout.classes[name] for name in sorted(set().union(*splits.values()))}
        names = [name for files in classes.values() for name in files]
        header = _header(origin, contents, classes, splits, shape)
        key = _key(cache, archive, contents, names, header)

    def build(path: Path) -> None:
        decode = image_decoder(shape[1], shape[0])
        images = decode_files([(archive, names)], header.image_shape, decode, "an image", progress)
        write_store(path, header, images)

    return Plan(key, build)


def split_pool(store: Store, split: Split, mean: Sequence[float], std: Sequence[float]) -> StorePool:
    """The classes of one split."""
    return StorePool(
        store.header.name, store, store.header.splittings["classes"][split], mean=tuple(mean), std=tuple(std)
    )


def described(store: Store) -> str:
    """A line that says what a store holds and where it lies."""
    header = store.header
    split = ", ".join(f"{len(header.splittings['classes'][split])} {split}" for split in SPLITS)
    return f"{header.name}: {len(store.images)} images of {len(header.classes)} classes ({split}) in {store.path}"


def preprocessing(shape: tuple[int, int]) -> str:
    """What is done to each image. shape: (channels, size)."""
    channels, size = shape
    return f"{'RGB' if channels == 3 else 'grey'}, upright, on white; Lanczos of the central square to {size}×{size}"


def _header(
    origin: Origin, contents: Contents, classes: dict[str, Sequence[str]], splits: Splits, shape: tuple[int, int]
) -> Header:
    shown = shown_names(contents, classes)
    slices: list[ClassSlice] = []
    for name, files in classes.items():
        start = slices[-1].stop if slices else 0
        slices.append(ClassSlice(shown[name], start, start + len(files)))
    numbers = {name: number for number, name in enumerate(classes)}
    splitting = {split: tuple(sorted(numbers[name] for name in splits[split])) for split in SPLITS}
    channels, size = shape
    return Header(
        origin.name,
        (channels, size, size),
        tuple(slices),
        {"classes": splitting},
        origin.source,
        origin.citation,
        preprocessing(shape),
    )


def _key(root: Path, archive: Archive, contents: Contents, names: Sequence[str], header: Header) -> str:
    """The content key of a store. It does not tell a zip from its folder, nor where in them the images lie."""
    start = len(shared_folder(names))
    recipe = json.dumps([asdict(header), [name[start:] for name in names]])

    def read_all() -> str:
        files = [contents.raw(name) for name in names]
        for file in files:
            if file.size > _LARGEST:
                reason = f"has {file.size:,} bytes, beyond the {_LARGEST:,} an image may have"
                raise ValueError(f"{archive.path}: {file.name} {reason}: remove it, or save it smaller")
        return content_key([file._replace(name=file.name[start:]) for file in files], recipe, FORMAT_VERSION)

    if archive.is_zip:  # its own directory tells the checksums
        return read_all()
    return remembered_key(root, header.name, [contents.stamp(name) for name in names], recipe, read_all)
