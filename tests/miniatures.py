"""Write miniatures of datasets: a few small pictures in the layout in which each is passed on."""

import io
import json
import pickle
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests import pictures

BIRDS = [f"{number:03d}.Bird_{chr(97 + number)}" for number in range(1, 9)]
ATTRIBUTES = 6


def bird_files(names: Sequence[str] = BIRDS) -> dict[str, bytes]:
    """Return classes of 8 images as CUB_200_2011.tgz has 200: paths, lines and their order as there."""
    images, labels, boxes, found = [], [], [], {}
    for label, name in enumerate(names, start=1):
        for copy in range(pictures.COPIES):
            number = len(images) + 1
            file = f"{name}/{name[4:]}_{copy:04d}_{number}.jpg"
            images.append(f"{number} {file}")
            labels.append(f"{number} {label}")
            boxes.append(f"{number} 2.0 {float(label % 7)} 8.0 2.0")
            found[f"CUB_200_2011/images/{file}"] = pictures.encoded(pictures.pixels(label, copy))
    values = [" ".join(f"{100 * (label + at) / 20:.5f}" for at in range(ATTRIBUTES)) for label in range(len(names))]
    texts = {
        "images.txt": images,
        "image_class_labels.txt": labels,
        "bounding_boxes.txt": boxes,
        "classes.txt": [f"{label} {name}" for label, name in enumerate(names, start=1)],
        "attributes/class_attribute_labels_continuous.txt": values,
    }
    found["attributes.txt"] = b"1 has_bill_shape::curved\n"
    return found | {
        f"CUB_200_2011/{name}": "".join(f"{line}\n" for line in lines).encode() for name, lines in texts.items()
    }


ANIMALS = [f"animal+{chr(97 + number)}" for number in range(12)]
ANIMALS_FOR_TEST = ANIMALS[3::4]
PREDICATES = 5


def animal_files() -> dict[str, bytes]:
    """Return 12 classes as AwA2-base.zip and AwA2-data.zip have 50. The first attribute of the first is missing."""
    values = [" ".join(f"{100 * (row + at) / 20:.2f}" for at in range(PREDICATES)) for row in range(len(ANIMALS))]
    texts = {
        "classes.txt": [f"{number:8d}\t{name}" for number, name in enumerate(ANIMALS, start=1)],
        "predicates.txt": [f"{number:8d}\tp{number}" for number in range(1, PREDICATES + 1)],
        "predicate-matrix-continuous.txt": ["-1" + values[0][4:], *values[1:]],
        "trainclasses.txt": [name for name in ANIMALS if name not in ANIMALS_FOR_TEST],
        "testclasses.txt": ANIMALS_FOR_TEST,
    }
    found = {
        f"JPEGImages/{name.replace('.png', '.jpg')}": content for name, content in pictures.class_files(ANIMALS).items()
    }
    found |= {name: "".join(f"{line}\n" for line in lines).encode() for name, lines in texts.items()}
    return {f"Animals_with_Attributes2/{name}": content for name, content in found.items()}


MEDICAL_LABELS = 4
MEDICAL_COPIES = {"train": 8, "val": 6, "test": 7}


def medical_arrays(grey: bool = False) -> dict[str, NDArray[np.uint8]]:
    """Return arrays as bloodmnist.npz has, grey as pneumoniamnist.npz: copy by copy, so that a class is no slice."""
    found = {}
    for number, (part, copies) in enumerate(MEDICAL_COPIES.items()):
        places = [(label, copy) for copy in range(copies) for label in range(MEDICAL_LABELS)]
        images = np.stack([pictures.pixels(label, copy) // (number + 1) for label, copy in places])
        found[f"{part}_images"] = images.max(3) if grey else images
        found[f"{part}_labels"] = np.array([[label] for label, _ in places], np.uint8)
    return found


def npz(arrays: dict[str, NDArray[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


TIERED = {
    "train": ("terrier", ["pug", "maillot", "maillot"]),
    "val": ("snake", ["boa", "crane"]),
    "test": ("boat", ["crane", "canoe"]),
}
"""A node and the names of its classes in each split, with two classes of one name and one name in two splits."""


def tiered_files(form: str = "png", protocol: int = 4) -> dict[str, bytes]:
    """Return the files of Ren et al. (2018), whose train_images.npz has blue first."""
    found = {}
    for number, (part, (node, names)) in enumerate(TIERED.items()):
        labels = [label for _ in range(pictures.COPIES) for label in range(len(names))]
        images = [pictures.pixels(10 * number + label, at // len(names)) for at, label in enumerate(labels)]
        if form == "png":
            encoded = [np.frombuffer(pictures.encoded(image), np.uint8).reshape(-1, 1).copy() for image in images]
            found[f"{part}_images_png.pkl"] = pickle.dumps(encoded, protocol)
        else:
            found[f"{part}_images.npz"] = npz({"images": np.stack(images)[..., ::-1]})
        fields = {
            "label_specific": np.array(labels, np.int32),
            "label_general": np.zeros(len(labels), np.int32),
            "label_specific_str": names,
            "label_general_str": [node],
        }
        found[f"{part}_labels.pkl"] = pickle.dumps(fields, protocol)
    return found


RECORDED = {"TRAIN": 4, "VALID": 3, "TEST": 3}
RECORDED_NAMES = [f"kind {number}" for number in range(sum(RECORDED.values()))]


def record_files(spec: dict[str, object] | None = None) -> dict[str, bytes]:
    """Return the folder of one dataset as Meta-Dataset's conversion writes it. spec: how it says what is in a split."""
    found = {}
    for number in range(len(RECORDED_NAMES)):
        images = [pictures.encoded(pictures.pixels(number, copy)) for copy in range(pictures.COPIES)]
        found[f"kinds/{number}.tfrecords"] = b"".join(framed(example(image, number)) for image in images)
    text = {
        "name": "kinds",
        "images_per_class": {str(number): pictures.COPIES for number in range(len(RECORDED_NAMES))},
        "class_names": {str(number): name for number, name in enumerate(RECORDED_NAMES)},
        "path": "/path/to/records/kinds",
        "file_pattern": "{}.tfrecords",
        **(spec or {"classes_per_split": RECORDED}),
    }
    return found | {"kinds/dataset_spec.json": json.dumps(text).encode()}


def example(image: bytes, label: int) -> bytes:
    """Encode a tf.train.Example of an image and its label (below 128)."""
    features = (b"image", sized(1, sized(1, image))), (b"label", sized(3, sized(1, bytes([label]))))
    return sized(1, b"".join(sized(1, sized(1, name) + sized(2, value)) for name, value in features))


def sized(number: int, content: bytes) -> bytes:
    """Encode a field of protocol buffers that has a length."""
    size, left = b"", len(content)
    while left > 127:
        size, left = size + bytes([left & 127 | 128]), left >> 7
    return bytes([number << 3 | 2]) + size + bytes([left]) + content


def framed(content: bytes) -> bytes:
    """Return a record of a TFRecord file."""
    length = struct.pack("<Q", len(content))
    return length + masked_crc(length) + content + masked_crc(content)


def masked_crc(content: bytes) -> bytes:
    """Return the masked CRC-32C, computed bit by bit."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


KINDS = [f"kind {chr(97 + number)}" for number in range(6)]
PLACES = [(number, copy) for copy in range(pictures.COPIES) for number in range(len(KINDS))]


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _picture(number: int, copy: int, kind: str = "PNG") -> bytes:
    return pictures.encoded(pictures.pixels(number, copy), kind)


def aircraft_files() -> dict[str, bytes]:
    """Return data/ of FGVC-Aircraft; each box is the whole picture but the last two lines."""
    found = {f"fgvc/data/images/{copy}{number:04d}.jpg": _picture(number, copy) for number, copy in PLACES}
    for part, copies in (("train", (0, 1, 2)), ("val", (3, 4)), ("test", (5, 6, 7))):
        lines = [f"{copy}{number:04d} {KINDS[number]}" for number, copy in PLACES if copy in copies]
        found[f"fgvc/data/images_variant_{part}.txt"] = _lines(lines)
    found["fgvc/data/variants.txt"] = _lines(KINDS)
    found["fgvc/data/images_box.txt"] = _lines([f"{copy}{number:04d} 0 0 12 10" for number, copy in PLACES])
    return found


def texture_files() -> dict[str, bytes]:
    images = {f"dtd/images/{KINDS[n]}/{KINDS[n]}_{copy:04d}.jpg": _picture(n, copy) for n, copy in PLACES}
    return {**images, "dtd/labels/labels_joint_anno.txt": b"", f"dtd/images/{KINDS[0]}/.directory": b""}


def sign_files() -> dict[str, bytes]:
    base = "GTSRB/Final_Training/Images"
    images = {f"{base}/{n:05d}/00000_{copy:05d}.ppm": _picture(n, copy, "PPM") for n, copy in PLACES}
    return {**images, **{f"{base}/{n:05d}/GT-{n:05d}.csv": b"Filename;Width\n" for n in range(len(KINDS))}}


def flower_files() -> dict[str, bytes]:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"labels": np.array([[number + 1 for number, _ in PLACES]], np.uint8)})
    images = {f"flowers/jpg/image_{at:05d}.jpg": _picture(*place) for at, place in enumerate(PLACES, start=1)}
    return {**images, "flowers/imagelabels.mat": buffer.getvalue()}


def _coco(places: list[tuple[int, int, int]], file_name: str, **more: object) -> bytes:
    text = {
        "info": {"year": 2018},
        "images": [{"id": 100 + at, "file_name": file_name.format(at), "width": 12} for at, _, _ in places],
        "annotations": [{"id": at, "image_id": 100 + at, "category_id": number, **more} for at, number, _ in places],
        "categories": [{"id": number, "name": name} for number, name in enumerate(KINDS)],
    }
    return json.dumps(text).encode()


def fungi_files() -> dict[str, bytes]:
    numbered = [(at, *place) for at, place in enumerate(PLACES)]
    images = {f"images/{at:05d}.JPG": _picture(number, copy) for at, number, copy in numbered}
    parts = {"train.json": numbered[:20], "val.json": numbered[20:]}
    return {**images, **{name: _coco(places, "images/{:05d}.JPG") for name, places in parts.items()}}


def coco_files() -> dict[str, bytes]:
    """Return train2017/ and its annotations: the enlarged box of each is the whole picture but the last two lines."""
    numbered = [(at, *place) for at, place in enumerate(PLACES)]
    images = {f"train2017/{at:012d}.jpg": _picture(number, copy) for at, number, copy in numbered}
    text = _coco(numbered, "{:012d}.jpg", bbox=[0, 0, 12.0, 9], iscrowd=0)
    return {**images, "annotations/instances_train2017.json": text}
