"""Serve CUB-200-2011 (Wah et al. 2011) as a task source: 11,788 photographs of 200 kinds of birds, with attributes."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tasks.sources.descriptions import DescribedPool, DescriptionFiles, Vectors, described
from tasks.sources.image_layout import Layout
from tasks.sources.image_names import Splits, group_files
from tasks.sources.image_store import ImageFormat, SourceInfo
from tasks.sources.list_files import DatasetFiles, parse_numbers
from tasks.sources.listed_images import ListedImages
from tasks.store.archive import Crop, OpenArchive
from tasks.types import Split

_CLASSES, _ATTRIBUTES = "classes.txt", "attributes/class_attribute_labels_continuous.txt"
_INFO = SourceInfo(
    "cub",
    "CUB-200-2011, https://www.vision.caltech.edu/datasets/cub_200_2011/",
    "Wah, C., Branson, S., Welinder, P., Perona, P., and Belongie, S. (2011). The Caltech-UCSD Birds-200-2011 dataset. "
    "CNS-TR-2011-001. Splits: Chen, W.-Y., Liu, Y.-C., Kira, Z., Wang, Y.-C. F., and Huang, J.-B. (2019). A closer "
    "look at few-shot classification. ICLR.",
    "images.txt, image_class_labels.txt, classes.txt and images/, as CUB_200_2011.tgz unpacks",
)


@dataclass(frozen=True)
class CUB(ListedImages):
    """CUB-200-2011 from a copy of the user's own, with a description of each class by 312 attributes.

    root: the folder CUB_200_2011 or one above it, or a zip of it. It is only read.
    crop: cut each image to the box around the bird (bounding_boxes.txt), which is resized to the square without regard
    to proportions; else the central square of the image is resized.
    splits: "auto" for the rule of Chen et al. (2019): of the classes sorted by name, those at even positions (from 0)
    are for training, at positions 1, 5, 9, … for validation and at 3, 7, 11, … for testing: 100, 50 and 50 of 200.
    Others, and other settings: as in ImageFolder.
    """

    crop: bool = False

    info: ClassVar[SourceInfo] = _INFO

    def pool(self, split: Split) -> DescribedPool:
        """Return one split's classes. Descriptions: the share of people who saw each attribute, in [0, 1]: [R, 312]."""
        pool = super().pool(split)
        assert self.root is not None, "the pool came without a root"
        names = (_CLASSES, _ATTRIBUTES)
        return described(pool, DescriptionFiles(self.root, self.cache, names, _CLASSES, _INFO.forms, _read_attributes))

    def _format(self) -> ImageFormat:
        def find(where: str, contents: OpenArchive) -> Layout:
            return _find_classes(DatasetFiles(where, contents, "images.txt", _INFO.forms), self.crop)

        return ImageFormat(find)

    def _own_settings(self) -> dict[str, Any]:
        return {"crop": True} if self.crop else {}


def split_by_position(classes: list[str]) -> Splits:
    """Return the splits of Chen et al. (2019) of classes, which are sorted first."""
    order = sorted(classes)
    return {"train": order[::2], "validation": order[1::4], "test": order[3::4]}


def _find_classes(files: DatasetFiles, crop: bool) -> Layout:
    images, labels, names = (files.table(name) for name in ("images.txt", "image_class_labels.txt", _CLASSES))
    pairs = []
    for number, image in images.items():
        label = files.look_up(labels, "image_class_labels.txt", number)
        pairs.append((files.look_up(names, _CLASSES, label), f"{files.base}images/{image}"))
    classes = group_files(pairs)
    files.require(classes, "images.txt")
    left_out = files.describe_unlisted("images/", classes, "images.txt")
    crops = _read_boxes(files, {number: file for number, (_, file) in zip(images, pairs, strict=True)}) if crop else {}
    return Layout(classes, split_by_position(list(classes)), left_out, crops)


def _read_boxes(files: DatasetFiles, file_of: dict[str, str]) -> dict[str, Crop]:
    """Return the box of each file. bounding_boxes.txt: lines NUMBER LEFT TOP WIDTH HEIGHT, in pixels."""
    name = "bounding_boxes.txt"
    boxes = {number: " ".join(box) for number, *box in files.words(name, 5, last_is_text=False)}
    found = {}
    for number, file in file_of.items():
        box = files.look_up(boxes, name, number).split()
        left, top, width, height = parse_numbers(f"{files.where}: {name}, image {number}", box)
        found[file] = Crop(file, (left, top, left + width, top + height))
    return found


def _read_attributes(files: DatasetFiles) -> Vectors:
    """Return the attributes of each class: percentages / 100. Their lines are in the order of classes.txt."""
    names = list(files.table(_CLASSES).values())
    values = files.matrix(_ATTRIBUTES, len(names)) / 100
    return dict(zip(names, values, strict=True))
