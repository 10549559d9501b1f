"""Decode raw images with Pillow into rows of a store, on all cores. Imported only where a store is built.

Training reads stores without Pillow.
"""

import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.store.archive import Archive, open_archive
from tasks.store.store import Images
from tasks.types import Progress, Shape

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
    """Return decode(content) of all files, in the order of `sources`: [n, *shape].

    kind: the expected kind of file, for messages: "a PNG". ValueError, which names the file: it does not decode.
    """
    with ExitStack() as stack:
        files: list[tuple[Path, str, Callable[[str], bytes]]] = []
        for archive, names in sources:
            read = stack.enter_context(open_archive(archive)).read
            files += [(archive.path, name, read) for name in names]

        def row(number: int) -> Images:
            path, name, read = files[number]
            content = read(name)
            with explain_decode_errors(f"{path}: {name}", kind):
                return decode(content)

        return compute_rows(len(files), shape, row, progress)


def compute_rows(rows: int, shape: Shape, row: Callable[[int], Images], progress: Progress) -> Images:
    """Return [rows, *shape] of row(0), row(1), …, computed on all cores. If several raise, the first is reported."""
    try:
        images = np.empty((rows, *shape), dtype=np.uint8)
    except (MemoryError, ValueError) as error:  # numpy raises ValueError for the largest sizes
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
def explain_decode_errors(name: str, kind: str) -> Iterator[None]:
    """Turn Pillow's errors for a damaged or absurdly large file into a ValueError of one line with the remedy."""
    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        yield
    except (OSError, SyntaxError, ValueError, struct.error, *bombs) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "unknown format" if unknown else " ".join(str(error).split())
        raise ValueError(f"{name} does not decode as {kind} ({reason}): replace it by a complete copy") from error


def image_decoder(size: int, channels: int) -> Callable[[bytes], Images]:
    """Return a function from a file in any of FORMATS, whatever its suffix, to [channels, size, size] uint8."""

    def decode(content: bytes) -> Images:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return resize_square(image, size, channels)

    return decode


def resize_square(image: Image.Image, size: int, channels: int) -> Images:
    """Resize the central square of an image by Lanczos to [channels, size, size] uint8.

    channels: 3 for RGB, 1 for grey (ITU-R 601). Transparent pixels are blended with white; 16 bits become 8.
    """
    plain = _flatten(image).convert("RGB" if channels == 3 else "L")
    width, height = plain.size
    side = min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    pixels: Images = np.asarray(plain.resize((size, size), Image.Resampling.LANCZOS, box=box))
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def _flatten(image: Image.Image) -> Image.Image:
    """Return an opaque image of 8 bits per channel."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8 rather than scale
        return Image.fromarray((np.asarray(image, dtype=np.float32).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground
