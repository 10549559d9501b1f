"""Serve miniImageNet (Vinyals et al. 2016) as a task source: 100 classes of ImageNet, 600 images each, 84×84.

The splits of Ravi and Larochelle (2017), 64 classes for training, 16 for validation and 20 for test, are part of every
copy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.few_shot import EmptySplit, FewShot, few_shot
from tasks.io.home import PathText
from tasks.io.safe_pickle import load_arrays
from tasks.sources.class_splits import AUTO, ChosenSplits, choose_splits
from tasks.sources.image_folder import Channels, check_settings
from tasks.sources.image_layout import Layout
from tasks.sources.image_store import (
    CHANNELS,
    OnBadImage,
    SourceInfo,
    StoreSettings,
    describe_store,
    find_image_archive,
    plan_store,
    preprocessing,
    split_pool,
)
from tasks.store.archive import Archive, open_archive
from tasks.store.cache import cache_root, cached_key, content_key
from tasks.store.class_pool import StorePool
from tasks.store.record import describe_data
from tasks.store.store import FORMAT_VERSION, Header, Images, Store, slice_classes, write_store
from tasks.store.store_cache import BuildPlan, LoadedStore, load_or_build, locate_raw_files
from tasks.types import SPLITS, DataRecord, EpisodeShape, Progress, Split, no_progress

_CACHES = tuple(f"mini-imagenet-cache-{part}.pkl" for part in ("train", "val", "test"))
_CATEGORIES = tuple(f"miniImageNet_category_split_{part}.pickle" for part in ("train_phase_train", "val", "test"))
_INFO = SourceInfo(
    "mini_imagenet",
    "ImageNet, https://www.image-net.org, in the splits of https://github.com/twitter-research/meta-learning-lstm",
    "Vinyals, O., Blundell, C., Lillicrap, T., Kavukcuoglu, K., and Wierstra, D. (2016). Matching networks for one "
    "shot learning. NeurIPS 29. Splits: Ravi, S., and Larochelle, H. (2017). Optimization as a model for few-shot "
    "learning. ICLR.",
    "train.csv, val.csv and test.csv (filename,label) beside images/, or train/, val/ and test/ of CLASS/IMAGE, or "
    f"{_CACHES[0]}, …val.pkl and …test.pkl, or {_CATEGORIES[0]}, …val.pickle and …test.pickle",
)


class PickledSplit(NamedTuple):
    """One split of a pickled copy: uint8 images [n, H, W, 3], or n of [H, W, 3], and the rows of each class."""

    images: Sequence[Images] | Images
    classes: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class MiniImageNet:
    """miniImageNet as a task source, from a copy of the user's own: there is no official download.

    root: a folder or a zip, in one of the common forms: train.csv, val.csv and test.csv beside images/; train/, val/
    and test/ of a folder for each class; or a folder with either of two kinds of pickles, mini-imagenet-cache-train.pkl
    and so on (Ren et al. 2018), or miniImageNet_category_split_train_phase_train.pickle and so on (Gidaris and
    Komodakis 2018), which are read without running any code in them. It is only read. It may be a URI, such as
    s3://BUCKET/FOLDER.
    cache: where the store is kept; None for $METATRAIN_CACHE or ~/.cache/metatrain. A URI, such as s3://BUCKET/FOLDER,
    is a cache that machines share; each keeps its downloads in the folder for None.
    size, channels, mean, std, on_bad_image: as in ImageFolder.
    """

    root: PathText | None = None
    cache: PathText | None = None
    size: int = 84
    channels: Channels = "rgb"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    on_bad_image: OnBadImage = "error"

    def __post_init__(self) -> None:
        check_settings(self)

    def prepare(self, progress: Progress) -> str:
        """Build the store unless it exists. Return a line that says what it holds and where it is."""
        return describe_store(self.store(progress))

    def pool(self, split: Split) -> StorePool:
        """Return one split's classes."""
        return split_pool(self.store(no_progress), split, self.mean, self.std)

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> FewShot | EmptySplit:
        """Return few-shot episodes over one split's classes."""
        return few_shot(self.pool(split), episode, seed, split)

    def data(self) -> DataRecord:
        """Return the classes of each split, digests of their images, and what was left out."""
        return describe_data(self._load(no_progress), "classes")

    def decode(self, content: bytes) -> Images:
        """Decode a user's image file as those of the store are: [C, size, size] uint8."""
        from tasks.store.decoding import image_decoder

        return image_decoder(self.size, CHANNELS[self.channels])(content)

    def store(self, progress: Progress) -> Store:
        """Return the store of this root, built first if this machine has none."""
        return self._load(progress).store

    def _load(self, progress: Progress) -> LoadedStore:
        if self.root is None:
            forms = _INFO.forms
            raise ValueError(f"root: miniImageNet has no official download: set tasks.root to a copy with {forms}")
        chosen = StoreSettings((CHANNELS[self.channels], self.size), cache_root(self.cache), self.on_bad_image)
        settings = [_pickle_preprocessing(chosen.shape), preprocessing(chosen.shape)]
        if self.on_bad_image != "error":
            settings.append(f"on_bad_image: {self.on_bad_image}")
        raw = locate_raw_files(self.root, self.cache, _select_files)
        return load_or_build(_INFO.name, raw, settings, self.cache, lambda root: _plan(root, chosen, progress))


def read_pickled_split(path: Path, split: Split) -> PickledSplit:
    """Read one split from either kind of pickle. ValueError: it is neither."""
    found = load_arrays(path)
    try:
        part = _parse_split(found if isinstance(found, dict) else {}, split)
        _check_split(part)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        remedy = "replace it by the original file"
        raise ValueError(f"{path} is no split of miniImageNet ({reason}): {remedy}") from error
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


def _plan(root: Path, settings: StoreSettings, progress: Progress) -> BuildPlan:
    """Return the plan for the form that the copy has."""
    for pickles in (_CACHES, _CATEGORIES):
        missing = [name for name in pickles if not (root / name).exists()]
        if not missing:
            return _plan_from_pickles(root, pickles, settings.shape, settings.cache, progress)
        if len(missing) < len(pickles):
            raise ValueError(f"{root} lacks {' and '.join(missing)}: replace it by a complete copy")
    archive = find_image_archive(root, _INFO.forms)

    def choose(layout: Layout, few: Mapping[str, int]) -> ChosenSplits:
        if not layout.splits:
            raise ValueError(f"{archive.path} does not say which classes are for training: use {_INFO.forms}")
        return choose_splits(str(archive.path), layout, AUTO, few)

    return plan_store(_INFO, archive, choose, settings, progress)


def _select_files(names: Sequence[str]) -> Sequence[str]:
    """Return the pickles among the files of a root, or all files if it has none."""
    for pickles in (_CACHES, _CATEGORIES):
        if set(pickles) & set(names):
            return [name for name in names if name in pickles]
    return names


def _plan_from_pickles(
    root: Path, pickles: Sequence[str], shape: tuple[int, int], cache: Path, progress: Progress
) -> BuildPlan:
    recipe = f"{_pickle_preprocessing(shape)}; rows in order of split and class"
    with open_archive(Archive(root)) as files:

        def read_all() -> str:
            return content_key([files.checksum(name) for name in pickles], recipe, FORMAT_VERSION)

        key = cached_key(cache, _INFO.name, [files.stamp(name) for name in pickles], recipe, read_all)

    def build(path: Path) -> None:
        from PIL import Image  # which training does without

        from tasks.store.decoding import compute_rows, resize_square

        parts = [read_pickled_split(root / name, split) for name, split in zip(pickles, SPLITS, strict=True)]
        header = _header(root, parts, shape)
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


def _header(root: Path, parts: Sequence[PickledSplit], shape: tuple[int, int]) -> Header:
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
        _INFO.name,
        (shape[0], shape[1], shape[1]),
        slice_classes(sizes.items()),
        {"classes": splitting},
        _INFO.source,
        _INFO.citation,
        _pickle_preprocessing(shape),
    )


def _pickle_preprocessing(shape: tuple[int, int]) -> str:
    return f"{'RGB' if shape[0] == 3 else 'grey'}; Lanczos of the central square to {shape[1]}×{shape[1]}"
