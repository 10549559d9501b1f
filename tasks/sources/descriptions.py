"""Serve a description of each class beside its images: attributes, as numbers, from a file of the dataset."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.io.home import PathText
from tasks.random import Integers
from tasks.sources.image_store import find_image_archive
from tasks.sources.list_files import DatasetFiles
from tasks.store.archive import open_archive
from tasks.store.class_pool import StorePool
from tasks.store.store_cache import locate_raw_files
from tasks.types import Shape

Vectors = Mapping[str, NDArray[np.float32]]
"""The description of each class [D], by its name."""


@dataclass(frozen=True)
class DescriptionFiles:
    """Where the descriptions of classes are, and how they are read.

    root, cache: settings of the source. names: the files of descriptions, relative to the dataset's folder; of a URI,
    only these are copied. marker: the one of them by which that folder is found. forms: the layout of the root, for
    messages. read: from these files to the descriptions.
    """

    root: PathText
    cache: PathText | None
    names: tuple[str, ...]
    marker: str
    forms: str
    read: Callable[[DatasetFiles], Vectors]

    def load(self) -> Vectors:
        """Return the description of each class. ValueError: the files are missing, or hold something else."""
        raw = locate_raw_files(self.root, self.cache, lambda found: [name for name in found if self._holds(name)])
        archive = find_image_archive(raw.localize(), self.forms)
        with open_archive(archive) as contents:
            return self.read(DatasetFiles(str(archive.path), contents, self.marker, self.forms))

    def _holds(self, name: str) -> bool:
        return name.endswith((*self.names, ".zip"))


@dataclass(frozen=True)
class DescribedPool(StorePool):
    """Classes of a store of images, each with a description. The file of descriptions is read when first asked for."""

    files: DescriptionFiles | None = None

    @property
    def description_shape(self) -> Shape:
        """Return (D,), the shape of a description."""
        return (self._vectors.shape[1],)

    def descriptions(self, classes: Integers) -> Tensor:
        """Return the description of each of `classes` [R]: float32 [R, D]. ValueError: there are none."""
        return torch.from_numpy(self._vectors[classes % len(self.numbers)])

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        assert self.files is not None, "a described pool without descriptions"
        found = self.files.load()
        return np.stack([found[self.store.header.classes[number].name] for number in self.numbers])


def described(pool: StorePool, files: DescriptionFiles) -> DescribedPool:
    """Return a pool whose classes have descriptions."""
    return DescribedPool(**{one.name: getattr(pool, one.name) for one in dataclasses.fields(pool)}, files=files)
