"""Read CIFAR-100 as it is passed on (Krizhevsky 2009): three pickles, whose classes few-shot learning divides anew."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.io.safe_pickle import load_arrays, to_text
from tasks.sources.class_splits import read_split_lists
from tasks.sources.split_images import PackedForm, PackedSplit, check_split
from tasks.types import Split

_FILES = ("meta", "train", "test")
_REMEDY = "replace it by the original file"


def cifar100_forms(lists: str) -> tuple[PackedForm, PackedForm]:
    """Return the two places of CIFAR-100's files: the folder in which it was unpacked, and its own.

    lists: the folder of tasks/splits with the classes of each split.
    """

    def read(paths: Sequence[Path], split: Split) -> PackedSplit:
        return read_cifar100(paths, read_split_lists(lists)[split])

    unpacked = tuple(f"cifar-100-python/{name}" for name in _FILES)
    return PackedForm((unpacked,) * 3, read), PackedForm((_FILES,) * 3, read)


def read_cifar100(paths: Sequence[Path], chosen: Sequence[str]) -> PackedSplit:
    """Read the images of the `chosen` classes, 600 of each: those that CIFAR-100 keeps for training, then for testing.

    paths: of meta, train and test. ValueError: they are something else.
    """
    meta, *parts = (_fields(path) for path in paths)
    try:
        number_of = {to_text(name): number for number, name in enumerate(meta["fine_label_names"])}
        images, labels = (np.concatenate([read(part) for part in parts]) for read in (_images, _labels))
        if len(images) != len(labels):
            raise ValueError(f"it has {len(labels)} labels for {len(images)} images")
        rows = np.flatnonzero(np.isin(labels, [number_of[name] for name in chosen]))
        part = PackedSplit(images[rows], {name: np.flatnonzero(labels[rows] == number_of[name]) for name in chosen})
        check_split(part)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{paths[0].parent} does not hold CIFAR-100 ({reason}): {_REMEDY}") from error
    return part


def _fields(path: Path) -> dict[str, Any]:
    found = load_arrays(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no dict of CIFAR-100: {_REMEDY}")
    return {to_text(key): value for key, value in found.items()}


def _images(part: dict[str, Any]) -> Any:
    """Return the images of a file [n, 32, 32, 3], which has their channels one after another."""
    data = np.asarray(part["data"])
    if data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise ValueError(f"its data are {data.dtype} {list(data.shape)}, not uint8 [n, 3072]")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _labels(part: dict[str, Any]) -> Any:
    labels = np.asarray(part["fine_labels"])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError("its labels are no whole numbers")
    return labels.astype(np.int64)
