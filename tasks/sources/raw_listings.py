"""List the images of each class of datasets that Meta-Dataset draws from, as each of them unpacks."""

import io
from collections.abc import Callable
from typing import NotRequired, TypedDict

from tasks.io.json_documents import check_json, parse_json
from tasks.sources.image_layout import Layout
from tasks.sources.image_names import group_files
from tasks.sources.list_files import DatasetFiles, parse_numbers
from tasks.store.archive import Crop

_COMPLETE = "replace it by a complete copy"
VARIANTS = ("data/images_variant_train.txt", "data/images_variant_val.txt", "data/images_variant_test.txt")
BOXES = "data/images_box.txt"
ANNOTATIONS = "annotations/instances_train2017.json"

_ENLARGED = 1.2

Lister = Callable[[DatasetFiles], Layout]


class _Image(TypedDict):
    id: int
    file_name: str


class _Annotation(TypedDict):
    id: int
    image_id: int
    category_id: int
    bbox: NotRequired[list[float]]


class _Category(TypedDict):
    id: int
    name: str


class _Coco(TypedDict):
    """Annotations in the form of COCO."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def list_aircraft(files: DatasetFiles) -> Layout:
    """List FGVC-Aircraft: the variants of its three official parts together, each image cut to the aircraft's box.

    The corners of the box are taken as those of a crop, as in Meta-Dataset. It also cuts off the line about the image's
    rights at its bottom edge.
    """
    pairs = [(variant, image) for part in VARIANTS for image, variant in files.words(part, 2)]
    classes = group_files((variant, f"{files.base}data/images/{image}.jpg") for variant, image in pairs)
    files.require(classes, "data/images_variant_*.txt")
    boxes = {image: " ".join(box) for image, *box in files.words(BOXES, 5, last_is_text=False)}
    crops = {}
    for _, image in pairs:
        left, top, right, bottom = parse_numbers(f"{files.where}: {BOXES}", files.look_up(boxes, BOXES, image).split())
        crops[f"{files.base}data/images/{image}.jpg"] = Crop(
            f"{files.base}data/images/{image}.jpg", (left, top, right, bottom)
        )
    return Layout(classes, {}, files.describe_unlisted("data/images/", classes, "data/images_variant_*.txt"), crops)


def list_textures(files: DatasetFiles) -> Layout:
    """List DTD: images/CLASS/IMAGE."""
    return _list_folders(files, "images/")


def list_signs(files: DatasetFiles) -> Layout:
    """List GTSRB: Final_Training/Images/00014/00003_00012.ppm, a class by its number of two digits: "14"."""
    found = _list_folders(files, "Final_Training/Images/", (".ppm",))
    return found._replace(classes={f"{int(name):02d}": images for name, images in found.classes.items()})


def list_flowers(files: DatasetFiles) -> Layout:
    """List VGG Flower: jpg/image_00001.jpg and so on, labelled by imagelabels.mat; a class by its number: "001".

    ValueError: scipy, which reads that file, is not installed.
    """
    labels = _read_flower_labels(files)
    pairs = [(f"{label:03d}", f"{files.base}jpg/image_{at:05d}.jpg") for at, label in enumerate(labels, start=1)]
    classes = group_files(pairs)
    files.require(classes, "imagelabels.mat")
    return Layout(classes, {}, files.describe_unlisted("jpg/", classes, "imagelabels.mat"))


def list_fungi(files: DatasetFiles) -> Layout:
    """List the fungi of FGVCx 2018: train.json and val.json together; a class by number and name, which repeat."""
    pairs = []
    for part in ("train.json", "val.json"):
        coco = _read_coco(files, part)
        names = {one["id"]: f"{one['id']:04d}.{one['name']}" for one in coco["categories"]}
        images = {one["id"]: one["file_name"] for one in coco["images"]}
        for one in coco["annotations"]:
            name, image = _resolve(files, part, one, names, images)
            pairs.append((name, f"{files.base}{image}"))
    classes = group_files(pairs)
    files.require(classes, "train.json or val.json")
    return Layout(classes, {}, files.describe_unlisted("images/", classes, "train.json or val.json"))


def list_coco(files: DatasetFiles) -> Layout:
    """List the objects of MSCOCO 2017: each annotation's box of train2017/IMAGE is an example of its category.

    Boxes are enlarged by a fifth about their centres, as in Meta-Dataset.
    """
    coco = _read_coco(files, ANNOTATIONS)
    names = {one["id"]: one["name"] for one in coco["categories"]}
    images = {one["id"]: one["file_name"] for one in coco["images"]}
    pairs, crops = [], {}
    for one in coco["annotations"]:
        name, image = _resolve(files, ANNOTATIONS, one, names, images)
        box = one.get("bbox", [])
        if len(box) != 4 or not min(box[2:]) > 0:
            continue
        row = f"{files.base}train2017/{image}#{one['id']}"
        crops[row] = Crop(row.rpartition("#")[0], _enlarge(*box))
        pairs.append((name, row))
    files.require({"": [crop.file for crop in crops.values()]}, ANNOTATIONS)
    without = len(coco["annotations"]) - len(pairs)
    left_out = (f"{without} annotations without a box that has an area",) if without else ()
    return Layout(group_files(pairs), {}, left_out, crops)


def _enlarge(left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Return a box 1.2 times as wide and high about its centre, in whole pixels by the rounding of Meta-Dataset."""
    wide, high = width * _ENLARGED, height * _ENLARGED
    left, top = left - (wide - width) / 2, top - (high - height) / 2
    return round(left - 0.5), round(top - 0.5), round(left + wide - 0.5) + 1, round(top + high - 0.5) + 1


def _list_folders(files: DatasetFiles, folder: str, suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png")) -> Layout:
    images = [name for name in files.below(folder) if name.lower().endswith(suffixes)]
    start = len(f"{files.base}{folder}")
    classes = group_files((name[start:].partition("/")[0], name) for name in images if "/" in name[start:])
    if not classes:
        raise ValueError(f"{files.where} has no images as {files.base}{folder}CLASS/IMAGE: {_COMPLETE}")
    return Layout(classes, {})


def _read_coco(files: DatasetFiles, name: str) -> _Coco:
    where = f"{files.where}: {name}"
    found: _Coco = check_json(parse_json(files.read(name), where, _COMPLETE), _Coco, where, _COMPLETE)
    return found


def _resolve(
    files: DatasetFiles, part: str, one: _Annotation, names: dict[int, str], images: dict[int, str]
) -> tuple[str, str]:
    """Return the class and the file of an annotation. ValueError: the annotations lack them."""
    name, image = names.get(one["category_id"]), images.get(one["image_id"])
    if name is None or image is None:
        reason = f"annotation {one['id']} is of an image or a category that it does not list"
        raise ValueError(f"{files.where}: {part}: {reason}: {_COMPLETE}")
    return name, image


def _read_flower_labels(files: DatasetFiles) -> list[int]:
    content = files.read("imagelabels.mat")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError("imagelabels.mat is read by scipy, which is not installed: run `pip install scipy`") from error
    from scipy.io.matlab import MatReadError

    try:
        labels = loadmat(io.BytesIO(content), variable_names=["labels"])["labels"]
    except (MatReadError, KeyError, ValueError, TypeError, IndexError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{files.where}: imagelabels.mat has no labels ({reason}): {_COMPLETE}") from error
    if labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(f"{files.where}: imagelabels.mat has no whole numbers as labels: {_COMPLETE}")
    found: list[int] = labels.reshape(-1).tolist()
    return found
