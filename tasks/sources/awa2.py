"""Serve Animals with Attributes 2 (Xian et al. 2019) as a task source: 37,322 photographs of 50 kinds of animals."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tasks.sources.class_splits import hash_order
from tasks.sources.descriptions import DescribedPool, DescriptionFiles, Vectors, described
from tasks.sources.image_layout import Layout
from tasks.sources.image_names import Splits, group_files, is_image
from tasks.sources.image_store import ImageFormat, SourceInfo
from tasks.sources.list_files import DatasetFiles
from tasks.sources.listed_images import ListedImages
from tasks.store.archive import OpenArchive
from tasks.text import enumerate_few
from tasks.types import Split

_CLASSES, _ATTRIBUTES = "classes.txt", "predicate-matrix-continuous.txt"
_TRAIN, _TEST = "trainclasses.txt", "testclasses.txt"
_VALIDATION, _TRAINING = 13, 40
_INFO = SourceInfo(
    "awa2",
    "Animals with Attributes 2, https://cvml.ista.ac.at/AwA2/",
    "Xian, Y., Lampert, C. H., Schiele, B., and Akata, Z. (2019). Zero-shot learning: a comprehensive evaluation of "
    "the good, the bad and the ugly. IEEE TPAMI, 41(9), 2251-2265.",
    f"{_CLASSES}, {_TRAIN}, {_TEST} and JPEGImages/CLASS/IMAGE, as AwA2-base.zip and AwA2-data.zip unpack",
)


@dataclass(frozen=True)
class AwA2(ListedImages):
    """Animals with Attributes 2 from a copy of the user's own, with a description of each class by 85 attributes.

    root: the folder Animals_with_Attributes2 or one above it, or a zip of it. It is only read.
    splits: "auto" for the official 40 classes of trainclasses.txt and 10 of testclasses.txt. 13 of the 40 are for
    validation, as many as Xian et al. (2019) took: those with the smallest hashes of their names (SHA-256); 27 are for
    training. Others, and other settings: as in ImageFolder.
    """

    info: ClassVar[SourceInfo] = _INFO

    def pool(self, split: Split) -> DescribedPool:
        """Return one split's classes. Descriptions: the strength of each attribute in [0, 1]: [R, 85].

        Strengths are the percentages of predicate-matrix-continuous.txt / 100; 0 where it has -1, a missing value.
        """
        pool = super().pool(split)
        assert self.root is not None, "the pool came without a root"
        names = (_CLASSES, _ATTRIBUTES)
        files = DescriptionFiles(self.root, self.cache, names, _ATTRIBUTES, _INFO.forms, _read_attributes)
        return described(pool, files)

    def _format(self) -> ImageFormat:
        return ImageFormat(_find_classes)


def split_training(names: list[str]) -> Splits:
    """Return the training classes with 13 of 40 of them, in order of the hashes of their names, for validation."""
    order = hash_order(names)
    count = round(len(order) * _VALIDATION / _TRAINING)
    return {"train": sorted(order[count:]), "validation": sorted(order[:count])}


def _find_classes(where: str, contents: OpenArchive) -> Layout:
    files = DatasetFiles(where, contents, _TRAIN, _INFO.forms)
    train, test = ([name for (name,) in files.words(list_, 1)] for list_ in (_TRAIN, _TEST))
    start = f"{files.base}JPEGImages/"
    images = [name for name in files.below("JPEGImages/") if is_image(name)]
    classes = group_files((name[len(start) :].partition("/")[0], name) for name in images)
    if missing := sorted({*train, *test} - set(classes)):
        reason = f"JPEGImages/ has no images of {enumerate_few(missing)}"
        raise ValueError(f"{where}: {reason}: replace it by a complete copy (AwA2-data.zip)")
    listed = {name: classes[name] for name in sorted({*train, *test})}
    splits: Splits = {**split_training(train), "test": sorted(test)}
    return Layout(listed, splits, files.describe_unlisted("JPEGImages/", listed, f"{_TRAIN} or {_TEST}"))


def _read_attributes(files: DatasetFiles) -> Vectors:
    names = list(files.table(_CLASSES).values())
    values = files.matrix(_ATTRIBUTES, len(names)) / 100
    return dict(zip(names, np.maximum(values, 0), strict=True))
