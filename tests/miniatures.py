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
