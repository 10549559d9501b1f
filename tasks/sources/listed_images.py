"""Share the settings, splits and store of sources of image files whose classes a user may divide in another way."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from tasks.io.home import PathText
from tasks.sources.class_splits import AUTO, SHUFFLE, TEST, ChosenSplits, SplitLists, choose_splits, read_split_lists
from tasks.sources.image_layout import Layout
from tasks.sources.image_settings import (
    CHANNELS,
    Channels,
    OnBadImage,
    check_bad_image,
    check_min_examples,
    check_settings,
)
from tasks.sources.image_store import (
    ImageFormat,
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

FEW_REMEDY = "set tasks.min_examples"


@dataclass(frozen=True)
class ListedImages(StoredImages):
    """Image files of a copy of the user's own; a subclass says which are the classes.

    info: what it is, and the layouts that the root may have. Settings: as in ImageFolder.
    """

    root: PathText | None = None
    cache: PathText | None = None
    size: int = 84
    channels: Channels = "rgb"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    splits: PathText | SplitLists = AUTO
    min_examples: int = 1
    on_bad_image: OnBadImage = "error"

    info: ClassVar[SourceInfo]

    def __post_init__(self) -> None:
        check_settings(self)
        check_bad_image(self)
        check_min_examples(self)

    def pool(self, split: Split) -> StorePool:
        """Return one split's classes."""
        return split_pool(self.store(no_progress), split, self.mean, self.std, FEW_REMEDY)

    def with_splits(self, classes: Mapping[Split, Sequence[str]]) -> Self:
        """Return the same source with these classes in each split."""
        return dataclasses.replace(self, splits=SplitLists(*(tuple(classes.get(split, ())) for split in SPLITS)))

    def _format(self) -> ImageFormat:
        """Return how the images are found and read."""
        raise NotImplementedError

    def _own_settings(self) -> dict[str, Any]:
        """Return the settings of the subclass that decide the store's content, where they are not the usual."""
        return {}

    def _load(self, progress: Progress) -> LoadedStore:
        forms, name = self.info.forms, self.info.name
        if self.root is None:
            raise ValueError(f"root: there are no images without it: set tasks.root to a folder or a zip with {forms}")
        shape = (CHANNELS[self.channels], self.size)
        raw = locate_raw_files(self.root, self.cache, list)

        def plan(root: Path) -> BuildPlan:
            archive = find_image_archive(root, forms)

            def choose(layout: Layout, few: Mapping[str, int]) -> ChosenSplits:
                return choose_splits(str(archive.path), layout, self.splits, few)

            settings = StoreSettings(shape, cache_root(self.cache), self.on_bad_image, self.min_examples)
            return plan_store(self.info, archive, self._format(), choose, settings, progress)

        return load_or_build(name, raw, self._noted_settings(shape), self.cache, plan)

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
        unusual |= self._own_settings()
        return [preprocessing(shape), splits, *([unusual] if unusual else [])]
