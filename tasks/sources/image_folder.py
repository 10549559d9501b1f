"""Serve a folder or zip of a user's images, a class per folder, as a task source: PNG, JPEG, BMP, WebP and GIF.

The images become a store of squares of one size. `mini_imagenet` shares the functions below the class.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tasks.few_shot import FewShot
from tasks.io.home import PathText
from tasks.sources.image_layout import (
    Layout,
    Splits,
    choose_splits,
    common_folder,
    display_names,
    find_layout,
    is_image,
    read_split_lists,
)
from tasks.store.archive import Archive, OpenArchive, open_archive
from tasks.store.cache import cache_root, cached_key, content_key
from tasks.store.class_pool import StorePool
from tasks.store.store import FORMAT_VERSION, Header, Store, slice_classes, write_store
from tasks.store.store_cache import BuildPlan, load_or_build, locate_raw_files
from tasks.types import SPLITS, EpisodeShape, Progress, Split, no_progress

Channels = Literal["rgb", "grey"]
CHANNELS: dict[str, int] = {"rgb": 3, "grey": 1}

_MAX_FILE_BYTES = 2**28
"""Larger image files are refused, as likely attacks on memory."""


class SourceInfo(NamedTuple):
    """Properties that all stores of one source share."""

    name: str
    source: str
    citation: str
    forms: str
    """Layouts that the root may have, for messages."""


_INFO = SourceInfo(
    "image_folder",
    "a folder of images of the user's own",
    "",
    "CLASS/IMAGE in one place, or in each of train/, val/ and test/, or train.csv, val.csv and test.csv "
    "(filename,label) beside images/",
)


@dataclass(frozen=True)
class ImageFolder:
    """A user's folder of images as a task source, a folder for each class.

    root: a folder, a zip, or a folder with one zip in it, or a URI of either, such as s3://BUCKET/FOLDER. It is only
    read.
    cache: where the store is kept; None for $METATRAIN_CACHE or ~/.cache/metatrain. A URI, such as s3://BUCKET/FOLDER,
    is a cache that machines share; each keeps its downloads in the folder for None.
    size: the side of an image in pixels: the shorter side is resized to it, the longer cropped at both ends.
    channels: "rgb" or "grey". mean, std: x in [0, 1] becomes (x - mean) / std, with one number or one for each
    channel; empty for 0 and 1.
    splits: the classes for training, validation and test. "auto" for those of the root's folders (train/, val/ or
    validation/, test/) or tables (train.csv, val.csv, test.csv), or without those a fixed shuffle into 64, 16 and 20 %;
    else a folder with train.txt, validation.txt and test.txt, or the name of such a list that ships with metatrain:
    "tiny-imagenet-140" (80, 20 and 40 classes of Tiny ImageNet, by a fixed shuffle of their sorted ids).
    """

    root: PathText | None = None
    cache: PathText | None = None
    size: int = 84
    channels: Channels = "rgb"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    splits: PathText = "auto"

    def __post_init__(self) -> None:
        check_settings(self)

    def prepare(self, progress: Progress) -> str:
        """Build the store unless it exists. Return a line that says what it holds and where it is."""
        return describe_store(self.store(progress))

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> FewShot:
        """Return few-shot episodes over one split's classes."""
        return FewShot(split_pool(self.store(no_progress), split, self.mean, self.std), episode, seed, split)

    def store(self, progress: Progress) -> Store:
        """Return the store of this root, built first if this machine has none."""
        if self.root is None:
            forms = _INFO.forms
            raise ValueError(f"root: there are no images without it: set tasks.root to a folder or a zip with {forms}")
        shape = (CHANNELS[self.channels], self.size)
        raw = locate_raw_files(self.root, self.cache, list)

        def plan(root: Path) -> BuildPlan:
            archive = find_image_archive(root, _INFO.forms)

            def choose(layout: Layout) -> Splits:
                return choose_splits(str(archive.path), layout, self.splits)

            return plan_store(_INFO, archive, choose, shape, cache_root(self.cache), progress)

        # A URI's note is looked up before anything is read, so it depends on the contents of the lists.
        splits = self.splits if self.splits == "auto" or raw.listing is None else read_split_lists(self.splits)
        return load_or_build(_INFO.name, raw, [preprocessing(shape), splits], self.cache, plan)


def check_settings(source: Any) -> None:
    """Check size, channels, mean and std of a source of images, and make mean and std tuples.

    ValueError: no image can have these.
    """
    size, channels, mean, std = source.size, source.channels, source.mean, source.std
    if size < 1:
        raise ValueError(f"size: an image of {size} pixels shows nothing: set tasks.size to 1 or more, such as 84")
    if channels not in CHANNELS:
        raise ValueError(f"channels: there are no '{channels}' images: set tasks.channels to {' or '.join(CHANNELS)}")
    count = CHANNELS[channels]
    for field, values in (("mean", mean), ("std", std)):
        if len(values) not in {0, 1, count}:
            counts = "1 number" if count == 1 else f"1 or {count} numbers"
            raise ValueError(f"{field}: {len(values)} numbers for {count} channels: set tasks.{field} to {counts}")
        object.__setattr__(source, field, tuple(values))
    if not all(0 <= value <= 1 for value in mean):
        raise ValueError(f"mean: {list(mean)} is no mean of values in [0, 1]: set tasks.mean to such (x/255)")
    if not all(0 < value < math.inf for value in std):
        raise ValueError(f"std: nothing can be divided by {list(std)}: set tasks.std to positive numbers")


def find_image_archive(root: Path, forms: str) -> Archive:
    """Return the archive of the images: `root`, or the one zip in it. ValueError: there is none.

    forms: the layouts that it may have, for messages.
    """
    if not root.exists():
        raise ValueError(f"{root} does not exist: set tasks.root to a folder or a zip with {forms}")
    archive = Archive(root)
    if archive.is_zip:
        return archive
    if not root.is_dir():
        raise ValueError(f"{root} is neither a folder nor a zip: unpack it, and set tasks.root to the folder")
    with open_archive(archive) as files:
        zips = [name for name in files.names if "/" not in name and name.lower().endswith(".zip")]
        if not zips or any(map(is_image, files.names)):
            return archive
    if len(zips) > 1:
        raise ValueError(f"{root} holds no images, but {' and '.join(zips)}: set tasks.root to one of them")
    return Archive(root / zips[0])


def plan_store(
    info: SourceInfo,
    archive: Archive,
    choose: Callable[[Layout], Splits],
    shape: tuple[int, int],
    cache: Path,
    progress: Progress,
) -> BuildPlan:
    """Return the plan for the store of the images in an archive.

    choose: from the archive's layout to the classes of each split; other classes are left out. shape: (channels, size).
    cache: this machine's, where the keys of folders are noted.
    """
    with open_archive(archive) as files:
        layout = find_layout(str(archive.path), files, info.forms)
        splits = choose(layout)
        classes = {name: layout.classes[name] for name in sorted(set().union(*splits.values()))}
        names = [name for members in classes.values() for name in members]
        display = display_names(files, classes)
        slices = slice_classes((display[name], len(members)) for name, members in classes.items())
        numbers = {name: number for number, name in enumerate(classes)}
        splitting = {split: tuple(sorted(numbers[name] for name in splits[split])) for split in SPLITS}
        image_shape = (shape[0], shape[1], shape[1])
        header = Header(
            info.name, image_shape, slices, {"classes": splitting}, info.source, info.citation, preprocessing(shape)
        )
        key = _store_key(cache, archive, files, names, header)

    def build(path: Path) -> None:
        from tasks.store.decoding import decode_files, image_decoder  # Pillow, which training does without

        decode = image_decoder(shape[1], shape[0])
        images = decode_files([(archive, names)], header.image_shape, decode, "an image", progress)
        write_store(path, header, images)

    return BuildPlan(key, build)


def split_pool(store: Store, split: Split, mean: Sequence[float], std: Sequence[float]) -> StorePool:
    """Return the classes of one split."""
    numbers = store.header.splittings["classes"][split]
    return StorePool(store.header.name, store, numbers, mean=tuple(mean), std=tuple(std))


def describe_store(store: Store) -> str:
    """Return a line that says what a store holds and where it is."""
    header = store.header
    split = ", ".join(f"{len(header.splittings['classes'][split])} {split}" for split in SPLITS)
    return f"{header.name}: {len(store.images)} images of {len(header.classes)} classes ({split}) in {store.path}"


def preprocessing(shape: tuple[int, int]) -> str:
    """Return the description of the preprocessing, which is part of a store's key. shape: (channels, size)."""
    channels, size = shape
    return f"{'RGB' if channels == 3 else 'grey'}, upright, on white; Lanczos of the central square to {size}×{size}"


def _store_key(root: Path, archive: Archive, files: OpenArchive, names: Sequence[str], header: Header) -> str:
    """Return the content key of a store. It is equal for a zip and its folder, wherever in them the images are."""
    start = len(common_folder(names))
    recipe = json.dumps([asdict(header), [name[start:] for name in names]])

    def read_all() -> str:
        checksums = [files.checksum(name) for name in names]
        for file in checksums:
            if file.size > _MAX_FILE_BYTES:
                reason = f"has {file.size:,} bytes, more than the {_MAX_FILE_BYTES:,} allowed for an image"
                raise ValueError(f"{archive.path}: {file.name} {reason}: remove it, or save it smaller")
        return content_key([file._replace(name=file.name[start:]) for file in checksums], recipe, FORMAT_VERSION)

    if archive.is_zip:  # its directory has the checksums
        return read_all()
    return cached_key(root, header.name, [files.stamp(name) for name in names], recipe, read_all)
