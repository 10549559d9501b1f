"""Draw small colour pictures of classes for tests; each shows its class and its copy."""

import csv
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 12
COPIES = 8
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (255, 255, 255))
SPLIT_SIZES = {"train": 5, "val": 4, "test": 4}
SPLIT_NAMES = {part: [f"{part}_{number}" for number in range(count)] for part, count in SPLIT_SIZES.items()}


def pixels(number: int, copy: int) -> NDArray[np.uint8]:
    """Draw [12, 12, 3]: a bar whose place and colour show the class, and below it a dot whose place shows the copy."""
    picture = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    picture[number % 7 : number % 7 + 2, 2:10] = COLOURS[number % len(COLOURS)]
    picture[10, copy] = 255
    picture[9, number % SIDE] = 200
    return picture


def encoded(array: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind)
    return buffer.getvalue()


def class_files(names: list[str], first: int = 0, inner: str = "", suffix: str = ".png") -> dict[str, bytes]:
    """Return CLASS/COPY.png, or CLASS/inner/COPY.png, for every class of `names`."""
    return {
        f"{name}/{inner}{copy}{suffix}": encoded(pixels(number, copy))
        for number, name in enumerate(names, first)
        for copy in range(COPIES)
    }


def split_files(called: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """Return train/CLASS/COPY.png, and the same for val/ and test/. called: other names for these folders."""
    found: dict[str, bytes] = {}
    first = 0
    for part, names in SPLIT_NAMES.items():
        folder = (called or {}).get(part, part)
        found |= {f"{folder}/{name}": content for name, content in class_files(names, first).items()}
        first += len(names)
    return found


def table_files() -> dict[str, bytes]:
    """Return the pictures of split_files() as images/CLASS_COPY.png beside train.csv, val.csv and test.csv."""
    found: dict[str, bytes] = {}
    tables = {part: [["filename", "label"]] for part in SPLIT_NAMES}
    for name, content in split_files().items():
        part, label, copy = name.split("/")
        found[f"images/{label}_{copy}"] = content
        tables[part].append([f"{label}_{copy}", label])
    return found | {f"{part}.csv": _csv(rows) for part, rows in tables.items()}


def album_files() -> dict[str, bytes]:
    """Return the pictures of split_files() in the layout of Meta-Album: images/ beside labels.csv."""
    found: dict[str, bytes] = {}
    rows = [["FILE_NAME", "CATEGORY", "SUPER_CATEGORY"]]
    for name, content in split_files().items():
        part, label, copy = name.split("/")
        found[f"album/images/{label}_{copy}"] = content
        rows.append([f"{label}_{copy}", label, part])
    return found | {"album/labels.csv": _csv(rows)}


def write(root: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, contents: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(contents, reverse=True):
            archive.writestr(name, contents[name])
    return path


def _csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
