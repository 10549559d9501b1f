"""miniImageNet (Vinyals et al. 2016): 100 classes of ImageNet, 600 images each, 84×84.

In the splits of Ravi and Larochelle (2017), 64 classes for training, 16 for validation and 20 for test, which every
copy of it brings with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.few_shot import FewShot
from tasks.io.safe_pickle import load_arrays
from tasks.sources.image_folder import (
    CHANNELS,
    Channels,
    Origin,
    checked_moments,
    described,
    folder_plan,
    image_archive,
    preprocessing,
    split_pool,
)
from tasks.sources.image_layout import Layout, Splits, choose_splits
from tasks.store.archive import Archive, opened
from tasks.store.cache import cache_root, content_key, remembered_key
from tasks.store.decoding import filled, squared
from tasks.store.store import FORMAT_VERSION, ClassSlice, Header, Images, Store, write_store
from tasks.store.store_cache import Plan, raw_at, stored
from tasks.types import SPLITS, EpisodeShape, Progress, Split, no_progress

_CACHES = tuple(f"mini-imagenet-cache-{part}.pkl" for part in ("train", "val", "test"))
_CATEGORIES = tuple(f"miniImageNet_category_split_{part}.pickle" for part in ("train_phase_train", "val", "test"))
_ORIGIN = Origin(
    "mini_imagenet",
    "ImageNet, https://www.image-net.org, in the splits of https://github.com/twitter-research/meta-learning-lstm",
    "Vinyals, O., Blundell, C., Lillicrap, T., Kavukcuoglu, K., and Wierstra, D. (2016). Matching networks for one "
    "shot learning. NeurIPS 29. Splits: Ravi, S., and Larochelle, H. (2017). Optimization as a model for few-shot "
    "learning. ICLR.",
    "train.csv, val.csv and test.csv (filename,label) beside images/, or train/, val/ and test/ of CLASS/IMAGE, or "
    f"{_CACHES[0]}, …val.pkl and …test.pkl, or {_CATEGORIES[0]}, …val.pickle and …test.pickle",
)


class Part(NamedTuple):
    """One split of a pickled copy: uint8 images [n, H, W, 3], or n of [H, W, 3], and the rows of each class."""

    images: Sequence[Images] | Images
    classes: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class MiniImageNet:
    """miniImageNet as a task source, from a copy of the user's own: there is no official download.

    root: a folder or a zip, in one of the forms in which copies go around: train.csv, val.csv and test.csv beside
    images/; train/, val/ and test/ of a folder for each class; or a folder with either of two kinds of pickles,
    mini-imagenet-cache-train.pkl and so on (Ren et al. 2018), or miniImageNet_category_split_train_phase_train.pickle
    and so on (Gidaris and Komodakis 2018), which are read without running any code in them. It is only ever read. It
    may be a URI, such as s3://BUCKET/FOLDER.
    cache: where the store is kept; None for $METATRAIN_CACHE or ~/.cache/metatrain. A URI, such as s3://BUCKET/FOLDER,
    is a cache that machines share; each keeps what it fetches in the folder that None names.
    size, channels, mean, std: as in ImageFolder.
    """

    root: str | None = None
    cache: str | None = None
    size: int = 84
    channels: Channels = "rgb"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

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
            raise ValueError(
                f"root: miniImageNet has no official download: set tasks.root to a copy with {_ORIGIN.forms}"
            )
        shape, place = (CHANNELS[self.channels], self.size), cache_root(self.cache)
        settings = [_preprocessing(shape), preprocessing(shape)]
        raw = raw_at(self.root, self.cache, _needed)
        return stored(_ORIGIN.name, raw, settings, self.cache, lambda here: _plan(here, shape, place, progress))


def read_part(path: Path, split: Split) -> Part:
    """One split out of either kind of pickle. Raises ValueError, with the remedy, for what is neither."""
    found = load_arrays(path)
    try:
        part = _part(found if isinstance(found, dict) else {}, split)
        _check(part)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no split of miniImageNet ({reason}): put the original file there") from error
    return part


def _part(found: Mapping[str, Any], split: Split) -> Part:
    if {"image_data", "class_dict"} <= set(found):
        images = found["image_data"]
        members = found["class_dict"].items()
        return Part(images, {str(name): _integers(rows, len(images)) for name, rows in members})
    if not {"data", "labels"} <= set(found):
        raise ValueError("it holds neither image_data and class_dict nor data and labels")
    images, labels = found["data"], _integers(found["labels"], len(found["data"]))
    if len(labels) != len(images):
        raise ValueError(f"it has {len(labels)} labels for {len(images)} images")
    names = {int(label): str(name) for name, label in (found.get("catname2label") or {}).items()}
    # Labels without names may start anew in each split.
    rows = {names.get(label, f"{split} {label}"): np.flatnonzero(labels == label) for label in set(labels.tolist())}
    return Part(images, rows)


def _integers(values: Any, most: int) -> NDArray[np.int64]:
    """values: any container; a forged range may have more than memory holds."""
    if len(values) > most:
        raise ValueError(f"it counts {len(values)} images where there are {most}")
    return np.asarray(list(values), np.int64)


def _check(part: Part) -> None:
    several = part.images if isinstance(part.images, list) else list(part.images[:1])
    good = (isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.shape[2:] == (3,) and x.size > 0 for x in several)
    if not several or not all(good):
        raise ValueError("its images are not uint8 of [n, height, width, 3]")
    if not part.classes:
        raise ValueError("it has no classes")
    for name, rows in part.classes.items():
        if rows.ndim != 1 or not len(rows) or rows.min() < 0 or rows.max() >= len(part.images):
            raise ValueError(f"the class {name!r} has rows that are none of its {len(part.images)} images")


def _plan(root: Path, shape: tuple[int, int], cache: Path, progress: Progress) -> Plan:
    """By the form in which the copy is. cache: this machine's."""
    for pickles in (_CACHES, _CATEGORIES):
        lacking = [name for name in pickles if not (root / name).exists()]
        if not lacking:
            return _pickled_plan(root, pickles, shape, cache, progress)
        if len(lacking) < len(pickles):
            raise ValueError(f"{root} lacks {' and '.join(lacking)}: put a whole copy there")
    archive = image_archive(root, _ORIGIN.forms)

    def choose(layout: Layout) -> Splits:
        if not layout.splits:
            raise ValueError(f"{archive.path} does not say which classes are for training: it needs {_ORIGIN.forms}")
        return choose_splits(str(archive.path), layout, "auto")

    return folder_plan(_ORIGIN, archive, choose, shape, cache, progress)


def _needed(names: Sequence[str]) -> Sequence[str]:
    """Of all files in a root, the pickles where it has them."""
    for pickles in (_CACHES, _CATEGORIES):
        if set(pickles) & set(names):
            return [name for name in names if name in pickles]
    return names


def _pickled_plan(root: Path, pickles: Sequence[str], shape: tuple[int, int], cache: Path, progress: Progress) -> Plan:
    recipe = f"{_preprocessing(shape)}; rows in order of split and class"
    with opened(Archive(root)) as contents:

        def read_all() -> str:
            return content_key([contents.raw(name) for name in pickles], recipe, FORMAT_VERSION)

        stamps = [contents.stamp(name) for name in pickles]
        key = remembered_key(cache, _ORIGIN.name, stamps, recipe, read_all)

    def build(path: Path) -> None:
        parts = [read_part(root / name, split) for name, split in zip(pickles, SPLITS, strict=True)]
        header, rows = _sorted(root, parts, shape)

        def row(number: int) -> Images:
            from PIL import Image

            part, at = rows[number]
            return squared(Image.fromarray(parts[part].images[at]), shape[1], shape[0])

        write_store(path, header, filled(len(rows), header.image_shape, row, progress))

    return Plan(key, build)


def _sorted(root: Path, parts: Sequence[Part], shape: tuple[int, int]) -> tuple[Header, list[tuple[int, int]]]:
    """The header of the store, and for each of its rows the part and the row there."""
    slices: list[ClassSlice] = []
    rows: list[tuple[int, int]] = []
    splitting: dict[Split, tuple[int, ...]] = {}
    for number, (split, part) in enumerate(zip(SPLITS, parts, strict=True)):
        splitting[split] = tuple(range(len(slices), len(slices) + len(part.classes)))
        for name in sorted(part.classes):
            if any(name == other.name for other in slices):
                raise ValueError(f"{root}: the class {name!r} is in two splits: put a whole copy there")
            slices.append(ClassSlice(name, len(rows), len(rows) + len(part.classes[name])))
            rows += [(number, at) for at in part.classes[name].tolist()]
    channels, size = shape
    image_shape = (channels, size, size)
    header = Header(
        _ORIGIN.name,
        image_shape,
        tuple(slices),
        {"classes": splitting},
        _ORIGIN.source,
        _ORIGIN.citation,
        _preprocessing(shape),
    )
    return header, rows


def _preprocessing(shape: tuple[int, int]) -> str:
    return f"{'RGB' if shape[0] == 3 else 'grey'}; Lanczos of the central square to {shape[1]}×{shape[1]}"
