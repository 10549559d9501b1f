"""Serve tieredImageNet (Ren et al. 2018) as a task source: 608 classes of ImageNet, 779,165 images, 84×84.

Its classes are below 34 nodes of ImageNet's hierarchy, 20 of which are for training, 6 for validation and 8 for test:
351, 97 and 160 classes, which are part of every copy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.io.safe_pickle import load_arrays, to_text
from tasks.sources.image_store import SourceInfo
from tasks.sources.npz_files import read_npz
from tasks.sources.split_images import PackedForm, PackedSplit, SplitImages, check_split
from tasks.types import Split

_REMEDY = "replace it by the original file"
_PARTS = ("train", "val", "test")


def read_png_split(paths: Sequence[Path], split: Split) -> PackedSplit:
    """Read a split from a pickle of a list of PNG files and one of labels. ValueError: they are something else."""
    images, labels = paths
    files = load_arrays(images)
    if not isinstance(files, list) or not all(_is_encoded(file) for file in files):
        raise ValueError(f"{images} is no list of images encoded as arrays of uint8: {_REMEDY}")
    return _with_labels(images, [file.tobytes() for file in files], labels, split)


def read_npz_split(paths: Sequence[Path], split: Split) -> PackedSplit:
    """Read a split from an .npz of images and a pickle of labels. ValueError: they are something else."""
    images, labels = paths
    found = read_npz(images, ["images"]).get("images")
    if found is None or found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] != 3:
        raise ValueError(f"{images} has no images of uint8 [n, height, width, 3]: {_REMEDY}")
    # OpenCV, by which the authors' program makes this file, has blue first.
    return _with_labels(images, found[..., ::-1], labels, split)


def _is_encoded(file: object) -> bool:
    if not isinstance(file, np.ndarray) or file.dtype != np.uint8 or not file.size:
        return False
    return file.ndim == 1 or file.shape[1:] == (1,)


def _with_labels(images: Path, content: Any, labels: Path, split: Split) -> PackedSplit:
    """Return images with the rows of their labels' classes. ValueError: there are not as many labels."""
    found = load_arrays(labels)
    if not isinstance(found, dict):
        raise ValueError(f"{labels} is no dict of labels: {_REMEDY}")
    fields = {to_text(key): value for key, value in found.items()}
    try:
        specific = _to_labels(fields["label_specific"])
        if len(specific) != len(content):
            raise ValueError(f"it has {len(specific)} labels for the {len(content)} images of {images.name}")
        names = _name_classes(fields, specific, split)
        part = PackedSplit(content, {name: np.flatnonzero(specific == label) for label, name in names.items()})
        check_split(part)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{labels} does not hold the labels of tieredImageNet ({reason}): {_REMEDY}") from error
    return part


def _to_labels(values: Any) -> NDArray[np.int64]:
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError("its labels are not whole numbers [n]")
    return labels.astype(np.int64)


def _name_classes(fields: Mapping[str, Any], specific: NDArray[np.int64], split: Split) -> dict[int, str]:
    """Return NODE/CLASS for each label, as the file's lists have it; SPLIT LABEL without these.

    A class whose node the list lacks is called by its own name. Two classes of one name, such as the two called
    "maillot", have their labels behind it.
    """
    labels = np.unique(specific).tolist()
    if not {"label_general", "label_specific_str", "label_general_str"} <= set(fields):
        return {label: f"{split} {label}" for label in labels}
    general = _to_labels(fields["label_general"])
    nodes, classes = ([to_text(one) for one in fields[f"label_{kind}_str"]] for kind in ("general", "specific"))
    if min(labels) < 0 or len(general) != len(specific) or general.min() < 0:
        raise ValueError("its labels are below 0, or not as many of classes as of their nodes")
    node_of = {label: int(general[np.argmax(specific == label)]) for label in labels}
    named = {
        label: f"{nodes[node]}/{classes[label]}" if node < len(nodes) else classes[label]
        for label, node in node_of.items()
    }
    count = Counter(named.values())
    return {label: name if count[name] == 1 else f"{name} ({label})" for label, name in named.items()}


_PNG = PackedForm(tuple((f"{part}_images_png.pkl", f"{part}_labels.pkl") for part in _PARTS), read_png_split)
_NPZ = PackedForm(tuple((f"{part}_images.npz", f"{part}_labels.pkl") for part in _PARTS), read_npz_split)


@dataclass(frozen=True)
class TieredImageNet(SplitImages):
    """tieredImageNet as a task source, from a copy of the user's own: there is no official download.

    root: a folder with the files of Ren et al. (2018): for each of train, val and test, train_images_png.pkl or
    train_images.npz, and train_labels.pkl (pickles are read without running any code in them); or a folder or a zip
    with train/, val/ and test/ of a folder for each class, or with tables, as of MiniImageNet. It may be a URI, such as
    s3://BUCKET/FOLDER. It is only read.
    size, channels, mean, std, cache, on_bad_image: as in ImageFolder. A store of all images at size 84 has 16.5 GB,
    which have to fit into memory while it is built.
    """

    info: ClassVar[SourceInfo] = SourceInfo(
        "tiered_imagenet",
        "ImageNet, https://www.image-net.org, in the splits of https://github.com/renmengye/few-shot-ssl-public",
        "Ren, M., Triantafillou, E., Ravi, S., Snell, J., Swersky, K., Tenenbaum, J. B., Larochelle, H., and Zemel, R. "
        "S. (2018). Meta-learning for semi-supervised few-shot classification. ICLR.",
        "train/, val/ and test/ of CLASS/IMAGE, or train_images_png.pkl (or .npz) and train_labels.pkl, and the same "
        "for val and test",
    )
    packed: ClassVar[tuple[PackedForm, ...]] = (_PNG, _NPZ)
