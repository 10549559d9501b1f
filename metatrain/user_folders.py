"""Let a learner read folders of a user's images: the classes to adapt to, and the images to tell apart."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from torch import Tensor

from tasks.sources.labelled_folder import FolderImages, read_image_folder, read_labelled_folder
from tasks.store.store import Images
from tasks.types import TaskSpec

Place = str | os.PathLike[str]


class FilePrediction(NamedTuple):
    """What a learner says of one file.

    label: the class predicted; probability: of that class. probabilities: of each class.
    truth: the class whose folder the file lies in; None if its folder is called like none of the classes.
    """

    file: str
    label: str
    probability: float
    probabilities: dict[str, float]
    truth: str | None


def read_support(source: Any, spec: TaskSpec, folder: Place) -> FolderImages:
    """Read the images of a folder for each class, as the task source of a run decodes them. ValueError: it cannot."""
    found = read_labelled_folder(folder, spec.x, _decoder(source))
    _warn_of_light_ink(source, found)
    return found


def read_queries(source: Any, spec: TaskSpec, folder: Place) -> FolderImages:
    """Read all images of a folder, as the task source of a run decodes them. ValueError: it cannot."""
    return read_image_folder(folder, spec.x, _decoder(source))


def describe_predictions(files: Sequence[str], labels: Sequence[str], probabilities: Tensor) -> list[FilePrediction]:
    """Return what each file is taken for. probabilities: [files, labels]."""
    found = []
    for file, row in zip(files, probabilities.tolist(), strict=True):
        each = dict(zip(labels, row, strict=True))
        label = max(each, key=lambda name: each[name])
        truth = next((part for part in reversed(PurePosixPath(file).parts[:-1]) if part in each), None)
        found.append(FilePrediction(file, label, each[label], each, truth))
    return found


def _decoder(source: Any) -> Callable[[bytes], Images]:
    decode: Callable[[bytes], Images] | None = getattr(source, "decode", None)
    if decode is None:
        kind = type(source).__name__
        remedy = "use adapt((x, y)), or give your task source a method decode(content) that returns [C, H, W] uint8"
        raise ValueError(f"the tasks of this run ({kind}) are not read from image files: {remedy}")
    return decode


def _warn_of_light_ink(source: Any, found: FolderImages) -> None:
    """Warn if drawings are light on dark where the run learned from dark ink on light paper."""
    share = float((found.images > 127).mean())
    if getattr(source, "decodes_ink", False) and share > 0.5:
        text = f"{100 * share:.0f} % of the support images is ink: this run learned from dark ink on light paper: "
        warnings.warn(text + "invert images that are light on dark", stacklevel=4)
