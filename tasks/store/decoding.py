"""From raw images to rows of a store: by Pillow, on all cores, and one raw file at a time on each."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.store.archive import Archive, opened
from tasks.store.store import Images
from tasks.types import Progress, Shape

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")

_CHUNK = 64
"""Rows between two calls of progress."""


def decode_files(
    sources: Sequence[tuple[Archive, Sequence[str]]],
    shape: Shape,
    decode: Callable[[bytes], Images],
    kind: str,
    progress: Progress,
) -> Images:
    """All files, in the order of `sources`: [n, *shape], a row being decode(content).

    kind: what each ought to be, for messages: "a PNG". Raises ValueError, naming the file and the remedy.
    """
    with ExitStack() as stack:
        files: list[tuple[Path, str, Callable[[str], bytes]]] = []
        for archive, names in sources:
            read = stack.enter_context(opened(archive)).read
            files += [(archive.path, name, read) for name in names]

        def row(number: int) -> Images:
            path, name, read = files[number]
            content = read(name)
            with decodable(f"{path}: {name}", kind):
                return decode(content)

        return filled(len(files), shape, row, progress)


def filled(rows: int, shape: Shape, row: Callable[[int], Images], progress: Progress) -> Images:
    """[rows, *shape], row i being row(i), computed on all cores. Of rows that fail, the first in order is told of."""
    try:
        images = np.empty((rows, *shape), dtype=np.uint8)
    except (MemoryError, ValueError) as error:  # numpy calls the largest an invalid dimension
        raise ValueError(f"size: {rows} images of {shape} do not fit into memory: lower tasks.size") from error

    def fill(start: int) -> int:
        stop = min(start + _CHUNK, rows)
        for number in range(start, stop):
            images[number] = row(number)
        return stop

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for done in threads.map(fill, range(0, rows, _CHUNK)):
            progress(done, rows)
    return images


@contextmanager
def decodable(name: str, kind: str) -> Iterator[None]:
    """What Pillow raises for a file that is damaged, or absurdly large, as one line with the remedy."""
    import struct

    from PIL import Image, UnidentifiedImageError

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} does not decode as {kind} (it is none): put a whole copy there") from error
    except (OSError, SyntaxError, ValueError, struct.error, *bombs) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} does not decode as {kind} ({reason}): put a whole copy there") from error


def image_decoder(size: int, channels: int) -> Callable[[bytes], Images]:
    """From a file in any of FORMATS, whatever its name, to [channels, size, size] uint8."""

    def decode(content: bytes) -> Images:
        from PIL import Image, ImageOps

        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return squared(image, size, channels)

    return decode


def squared(image: "Image", size: int, channels: int) -> Images:
    """The shorter side resized to `size` (Lanczos), the longer cut off on both ends: [channels, size, size] uint8.

    channels: 3 for RGB, 1 for grey (ITU-R 601). What is transparent lies on white, 16 bits become 8.
    """
    from PIL import Image

    plain = _opaque(image).convert("RGB" if channels == 3 else "L")
    width, height = plain.size
    side = min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    pixels: Images = np.asarray(plain.resize((size, size), Image.Resampling.LANCZOS, box=box))
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def _opaque(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8 rather than scale
        return Image.fromarray((np.asarray(image, dtype=np.float32).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground
