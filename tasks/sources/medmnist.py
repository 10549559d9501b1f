"""Serve a dataset of MedMNIST (Yang et al. 2023) as a task source: small medical images in an .npz."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.io.home import PathText
from tasks.sources.image_settings import CHANNELS, Channels, check_min_examples, check_settings
from tasks.sources.image_store import SourceInfo, StoredImages, StoreSettings, split_pool
from tasks.sources.listed_images import FEW_REMEDY
from tasks.sources.npz_files import read_npz
from tasks.sources.split_images import PackedForm, PackedSplit, plan_packed
from tasks.store.cache import cache_root
from tasks.store.class_pool import StorePool
from tasks.store.store_cache import BuildPlan, Findings, LoadedStore, load_or_build, locate_raw_files
from tasks.types import Progress, Split, no_progress

_PART: Mapping[Split, str] = {"train": "train", "validation": "val", "test": "test"}
_INFO = SourceInfo(
    "medmnist",
    "MedMNIST v2, https://medmnist.com",
    "Yang, J., Shi, R., Wei, D., Liu, Z., Zhao, L., Ke, B., Pfister, H., and Ni, B. (2023). MedMNIST v2: a large-scale "
    "lightweight benchmark for 2D and 3D biomedical image classification. Scientific Data, 10, 41.",
    "train_images, train_labels, val_images, val_labels, test_images and test_labels, such as bloodmnist.npz",
)
_NOTE = "the splits have the same classes: tasks for testing have other images of the classes that were trained on"


@dataclass(frozen=True)
class MedMNIST(StoredImages):
    """One dataset of MedMNIST from a copy of the user's own: other images in each split, but of the same classes.

    The datasets have 2 to 11 classes, too few to divide. So the classes of each split are all labels that its official
    part has, called SPLIT/LABEL, and tasks of different splits differ in their images. A test tells how well a learner
    does on new images of known classes (as from the other hospital of PathMNIST), not on new classes; across datasets,
    by a mixture or `evaluate`, classes are new. Refused: several labels an image (ChestMNIST), and volumes.

    root: an .npz, or a folder with it, or a URI of either. It is only read.
    dataset: the file's name without .npz, in a folder with several: "bloodmnist".
    min_examples: classes with fewer images in a split are left out of that split.
    size: 28, as the images have, or another to which they are resized. Others: as in ImageFolder.
    """

    root: PathText | None = None
    cache: PathText | None = None
    dataset: str | None = None
    size: int = 28
    channels: Channels = "rgb"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    min_examples: int = 1

    info: ClassVar[SourceInfo] = _INFO

    def __post_init__(self) -> None:
        check_settings(self)
        check_min_examples(self)

    def pool(self, split: Split) -> StorePool:
        """Return one split's classes."""
        return split_pool(self.store(no_progress), split, self.mean, self.std, FEW_REMEDY)

    def _load(self, progress: Progress) -> LoadedStore:
        if self.root is None:
            forms = _INFO.forms
            raise ValueError(f"root: there are no images without it: set tasks.root to an .npz with {forms}")
        settings = StoreSettings(
            (CHANNELS[self.channels], self.size), cache_root(self.cache), min_examples=self.min_examples
        )
        raw = locate_raw_files(self.root, self.cache, partial(_select_files, self.dataset))
        noted = [settings.shape, self.dataset, self.min_examples]
        return load_or_build(_INFO.name, raw, noted, self.cache, partial(_plan, self.dataset, settings, progress))


def read_part(paths: Sequence[Path], split: Split) -> PackedSplit:
    """Read the images of a split and the rows of each label. ValueError: the file lacks them, or has other arrays."""
    path, part = paths[0], _PART[split]
    names = (f"{part}_images", f"{part}_labels")
    arrays = read_npz(path, names)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}: set tasks.root to a file with {_INFO.forms}")
    images, labels = (arrays[name] for name in names)
    _check_arrays(path, part, images, labels)
    values = labels.reshape(-1)
    return PackedSplit(images, {f"{split}/{label}": np.flatnonzero(values == label) for label in np.unique(values)})


def _check_arrays(path: Path, part: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise ValueError(f"{path}: {part}_images is no uint8 array [n, H, W] or [n, H, W, 3]: replace the file")
    if images.ndim == 4 and images.shape[3] != 3:
        shape = "×".join(map(str, images.shape[1:]))
        raise ValueError(f"{path}: {part}_images has volumes of {shape}, and images are read: use a 2D dataset")
    if labels.ndim == 2 and labels.shape[1] > 1:
        reason = f"{part}_labels gives each image {labels.shape[1]} labels, which belong to no one class"
        raise ValueError(f"{path}: {reason}: use a dataset with one label an image")
    if labels.dtype.kind not in "iu" or labels.size != len(images) or len(labels) != len(images):
        raise ValueError(f"{path}: {part}_labels is not {len(images)} whole numbers, one an image: replace the file")


def _select_files(dataset: str | None, names: Sequence[str]) -> list[str]:
    """Return the files of a root that are the dataset."""
    return [name for name in names if "/" not in name and name.endswith(".npz") and dataset in (None, name[:-4])]


def _find_file(root: Path, dataset: str | None) -> Path:
    """Return the .npz that is meant. ValueError: there is none, or there are several."""
    if root.is_file():
        return root
    if not root.is_dir():
        raise ValueError(f"{root} does not exist: set tasks.root to an .npz with {_INFO.forms}")
    there = sorted(path.name for path in root.iterdir())
    found = _select_files(dataset, there)
    if len(found) == 1:
        return root / found[0]
    every = [name.removesuffix(".npz") for name in _select_files(None, there)]
    if not every:
        raise ValueError(f"{root} holds no .npz: set tasks.root to one with {_INFO.forms}")
    which = f"no {dataset}.npz" if dataset else "several datasets"
    raise ValueError(f"dataset: {root} has {which}: set tasks.dataset to one of {', '.join(every)}")


def _plan(dataset: str | None, settings: StoreSettings, progress: Progress, root: Path) -> BuildPlan:
    path = _find_file(root, dataset)
    form = PackedForm(((path.name,),) * 3, read_part)
    plan = plan_packed(_INFO, path.parent, form, settings, progress)
    return plan._replace(findings=Findings((), (_NOTE,)))
