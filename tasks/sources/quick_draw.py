"""Serve Quick, Draw! (Ha & Eck 2018) as a task source, from the .npy file of bitmaps of each class."""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.sources.image_layout import Layout
from tasks.sources.image_names import group_files
from tasks.sources.image_store import ImageFormat, SourceInfo
from tasks.sources.listed_images import ListedImages
from tasks.store.archive import Archive, OpenArchive, open_archive
from tasks.store.cache import FileChecksum

SIDE = 28
SUFFIX = ".npy"
_PREFIX = "full_numpy_bitmap_"
_INFO = SourceInfo(
    "quick_draw",
    "Quick, Draw!, https://github.com/googlecreativelab/quickdraw-dataset",
    "Ha, D., and Eck, D. (2018). A neural representation of sketch drawings. ICLR.",
    f"a file of bitmaps for each class, such as {_PREFIX}airplane{SUFFIX} or airplane{SUFFIX}",
)


@dataclass(frozen=True)
class QuickDraw(ListedImages):
    """Quick, Draw!: 345 classes of drawings, white ink on black, 28×28; of each class the first `max_examples`.

    The whole has 50 million drawings, 100,000 and more of a class, of which few-shot tasks need few.

    root: a folder of .npy files, or a URI of it; no zip. It is only read.
    splits: "auto" divides the classes by a hash of their names; for the official classes of Meta-Dataset, set it to its
    JSON list, quickdraw_splits.json. Others, and other settings: as in ImageFolder.
    """

    size: int = SIDE
    channels: Any = "grey"
    max_examples: int = 1000

    info: ClassVar[SourceInfo] = _INFO

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_examples < 1:
            raise ValueError(
                f"max_examples: {self.max_examples} leaves no drawing: set tasks.max_examples to 1 or more"
            )

    def _format(self) -> ImageFormat:
        return ImageFormat(_find_classes, partial(open_drawings, self.max_examples))

    def _own_settings(self) -> dict[str, Any]:
        return {"max_examples": self.max_examples}


def _find_classes(where: str, contents: OpenArchive) -> Layout:
    drawings = [name for name in contents.names if _is_drawing(name)]
    if not drawings:
        raise ValueError(f"{where} has no {SUFFIX} files: set tasks.root to a folder with {_INFO.forms}")
    return Layout(group_files([(_class_of(name), name) for name in drawings]), {})


@contextmanager
def open_drawings(most: int, archive: Archive) -> Iterator[OpenArchive]:
    """Open a folder of bitmaps. In place of a file's name, CLASS.npy/NUMBER is a drawing, as a PNG.

    most: the drawings of a class that are named. ValueError: it is a zip, or a file has no bitmaps.
    """
    if archive.is_zip:
        raise ValueError(f"{archive.path} is a zip, and drawings are read from a folder: unpack it")
    with open_archive(archive) as files:
        bitmaps = {name: open_bitmaps(archive.path / name) for name in files.names if name.endswith(SUFFIX)}
        names = [f"{name}/{row:08d}" for name, rows in bitmaps.items() for row in range(min(most, len(rows)))]

        def row_of(name: str) -> NDArray[np.uint8]:
            file, _, row = name.rpartition("/")
            return np.asarray(bitmaps[file][int(row)])

        def read(name: str) -> bytes:
            return _as_png(row_of(name)) if _is_drawing(name) else files.read(name)

        def checksum(name: str) -> FileChecksum:
            if not _is_drawing(name):
                return files.checksum(name)
            content = row_of(name).tobytes()
            return FileChecksum(name, len(content), zlib.crc32(content))

        stamp = cache(files.stamp)
        yield OpenArchive(
            names, read, checksum, lambda name: stamp(name.rpartition("/")[0] if _is_drawing(name) else name)
        )


def open_bitmaps(path: Path) -> NDArray[np.uint8]:
    """Return the bitmaps of a file [n, 784], which are read as they are needed. ValueError: it has none."""
    try:
        found: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no .npy of bitmaps ({reason}): replace it by the original file") from error
    if found.dtype != np.uint8 or found.shape[1:] != (SIDE * SIDE,):
        wanted = f"uint8 [n, {SIDE * SIDE}]"
        raise ValueError(
            f"{path} holds {found.dtype} {list(found.shape)}, not {wanted}: replace it by the original file"
        )
    return found


def _is_drawing(name: str) -> bool:
    return name.rpartition("/")[0].endswith(SUFFIX)


def _class_of(name: str) -> str:
    return name.rpartition("/")[0].rpartition("/")[2].removesuffix(SUFFIX).removeprefix(_PREFIX)


def _as_png(row: NDArray[np.uint8]) -> bytes:
    from PIL import Image  # which training does without

    made = io.BytesIO()
    Image.fromarray(row.reshape(SIDE, SIDE)).save(made, "PNG", compress_level=1)
    return made.getvalue()
