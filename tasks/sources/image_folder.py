"""Serve a folder or zip of a user's images, a class per folder, as a task source: PNG, JPEG, BMP, WebP and GIF.

The images become a store of squares of one size. `mini_imagenet` shares the functions below the class.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from tasks.io.home import PathText
from tasks.sources.class_splits import AUTO, SHUFFLE, TEST, ChosenSplits, SplitLists, choose_splits, read_split_lists
from tasks.sources.image_layout import Layout
from tasks.sources.image_store import (
    CHANNELS,
    ON_BAD_IMAGE,
    OnBadImage,
    SourceInfo,
    StoredImages,
    StoreSettings,
    find_image_archive,
    plan_store,
    preprocessing,
    split_pool,
)
from tasks.store.cache import cache_root
from tasks.store.class_pool import StorePool
from tasks.store.store_cache import BuildPlan, LoadedStore, load_or_build, locate_raw_files
from tasks.types import SPLITS, Progress, Split, no_progress

Channels = Literal["rgb", "grey"]

_INFO = SourceInfo(
    "image_folder",
    "a folder of images of the user's own",
    "",
    "CLASS/IMAGE in one place, or in each of train/, val/ and test/, or train.csv, val.csv and test.csv, or "
    "labels.csv (filename,label) beside images/",
)


@dataclass(frozen=True)
class ImageFolder(StoredImages):
    """A user's folder of images as a task source, a folder for each class.

    root: a folder, a zip, or a folder with one zip in it, or a URI of either, such as s3://BUCKET/FOLDER. It is only
    read.
    cache: where the store is kept; None for $METATRAIN_CACHE or ~/.cache/metatrain. A URI, such as s3://BUCKET/FOLDER,
    is a cache that machines share; each keeps its downloads in the folder for None.
    size: the side of an image in pixels: the shorter side is resized to it, the longer cropped at both ends.
    channels: "rgb" or "grey". mean, std: x in [0, 1] becomes (x - mean) / std, with one number or one for each
    channel; empty for 0 and 1.
    splits: the classes for training, validation and test. "auto" for those of the root's folders (train/, val/ or
    validation/, test/) or tables (train.csv, val.csv, test.csv); classes in one place are divided by a hash of their
    names, 64, 16 and 20 %, so that a folder that grows does not reshuffle, and a split that the root lacks is taken
    from train in the same way. Else a folder with train.txt, validation.txt and test.txt; the lists themselves, as
    {train: […], validation: […], test: […]}; or the name of lists that ship with metatrain: "tiny-imagenet-140" (80, 20
    and 40 classes of Tiny ImageNet, by a fixed shuffle of their sorted ids). For evaluation alone: "test" for the
    root's test/ or test.csv or, without one, all its classes; a list of test classes alone. "shuffle" is "auto" with
    the fixed shuffle of version 0.1.
    min_examples: classes with fewer images are left out.
    hierarchy: a file of lines PARENT CHILD, such as ImageNet's wordnet.is_a.txt, whose children are the classes: with
    the sampler meta_dataset a task's classes are those below one node.
    on_bad_image: "error" for an error that lists all images that do not decode, "skip" to leave them out.
    """

    root: PathText | None = None
    cache: PathText | None = None
    size: int = 84
    channels: Channels = "rgb"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    splits: PathText | SplitLists = AUTO
    min_examples: int = 1
    hierarchy: PathText | None = None
    on_bad_image: OnBadImage = "error"

    def __post_init__(self) -> None:
        check_settings(self)
        if self.min_examples < 1:
            raise ValueError(f"min_examples: {self.min_examples} is below 1: set tasks.min_examples to 1 or more")

    def pool(self, split: Split) -> StorePool:
        """Return one split's classes."""
        remedy = "set tasks.min_examples"
        return split_pool(self.store(no_progress), split, self.mean, self.std, remedy, self.hierarchy)

    def with_splits(self, classes: Mapping[Split, Sequence[str]]) -> Self:
        """Return the same source with these classes in each split."""
        return dataclasses.replace(self, splits=SplitLists(*(tuple(classes.get(split, ())) for split in SPLITS)))

    def _load(self, progress: Progress) -> LoadedStore:
        if self.root is None:
            forms = _INFO.forms
            raise ValueError(f"root: there are no images without it: set tasks.root to a folder or a zip with {forms}")
        shape = (CHANNELS[self.channels], self.size)
        raw = locate_raw_files(self.root, self.cache, list)

        def plan(root: Path) -> BuildPlan:
            archive = find_image_archive(root, _INFO.forms)

            def choose(layout: Layout, few: Mapping[str, int]) -> ChosenSplits:
                return choose_splits(str(archive.path), layout, self.splits, few)

            settings = StoreSettings(shape, cache_root(self.cache), self.on_bad_image, self.min_examples)
            return plan_store(_INFO, archive, choose, settings, progress)

        return load_or_build(_INFO.name, raw, self._noted_settings(shape), self.cache, plan)

    def _noted_settings(self, shape: tuple[int, int]) -> list[Any]:
        """Return what decides the store's content: a URI's note is looked up by it before anything is read."""
        if isinstance(self.splits, SplitLists):
            splits: Any = dataclasses.asdict(self.splits)
        elif self.splits in (AUTO, TEST, SHUFFLE):
            # Version 0.1 noted "auto" for its shuffle.
            splits = {AUTO: "auto, by a hash", SHUFFLE: "auto"}.get(self.splits, self.splits)
        else:
            splits = read_split_lists(self.splits)
        unusual: dict[str, Any] = {} if self.min_examples == 1 else {"min_examples": self.min_examples}
        if self.on_bad_image != "error":
            unusual["on_bad_image"] = self.on_bad_image
        return [preprocessing(shape), splits, *([unusual] if unusual else [])]


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
    if source.on_bad_image not in ON_BAD_IMAGE:
        choices = " or ".join(ON_BAD_IMAGE)
        raise ValueError(f"on_bad_image: there is no '{source.on_bad_image}': set tasks.on_bad_image to {choices}")
    if not all(0 <= value <= 1 for value in mean):
        raise ValueError(f"mean: {list(mean)} is no mean of values in [0, 1]: set tasks.mean to such (x/255)")
    if not all(0 < value < math.inf for value in std):
        raise ValueError(f"std: nothing can be divided by {list(std)}: set tasks.std to positive numbers")
