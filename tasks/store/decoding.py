"""Decode raw images with Pillow into rows of a store, on all cores. Imported only where a store is built.

Training reads stores without Pillow.
"""

import io
import math
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.store.archive import Archive, Crop, DamagedEntryError, Opener, open_archive
from tasks.store.bad_images import BadImage, explain_bad_images
from tasks.store.image_formats import name_format
from tasks.store.store import Images
from tasks.types import Progress, Shape

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels from the upper left corner."""

_CHUNK = 64
"""Rows between two calls of progress."""


class UndecodableError(ValueError):
    """A file that does not decode; its text is the reason."""


def decode_files(
    sources: Sequence[tuple[Archive, Sequence[str]]],
    shape: Shape,
    decode: Callable[[bytes], Images],
    kind: str,
    progress: Progress,
    report: Path | None = None,
) -> Images:
    """Return decode(content) of all files, in the order of `sources`: [n, *shape].

    kind: the expected kind of file, for messages: "a PNG". report: a file in which all bad images are listed if they
    are many. ValueError, which names the files: some do not decode.
    """
    images, bad = try_files(sources, shape, decode, progress)
    if bad:
        where = f"{sources[0][0].path}: " if len(sources) == 1 else ""
        raise ValueError(explain_bad_images(where, bad, kind, report))
    return images


def try_files(
    sources: Sequence[tuple[Archive, Sequence[str]]],
    shape: Shape,
    decode: Callable[..., Images],
    progress: Progress,
    opener: Opener = open_archive,
    crops: Mapping[str, Crop] = MappingProxyType({}),
) -> tuple[Images, list[BadImage]]:
    """Return decode(content) of all files, in the order of `sources`, and the files that do not decode, by row.

    opener: opens an archive. crops: of names that are no files, what part of which file: decode(content, box).
    """
    with ExitStack() as stack:
        files: list[tuple[str, str, Callable[[str], bytes]]] = []
        for archive, names in sources:
            read = stack.enter_context(opener(archive)).read
            where = "" if len(sources) == 1 else f"{archive.path}: "
            files += [(where, name, read) for name in names]

        def row(number: int) -> Images:
            _, name, read = files[number]
            crop = crops.get(name)
            content = read(name if crop is None else crop.file)
            with explain_decode_errors():
                return decode(content) if crop is None else decode(content, crop.box)

        return try_rows([f"{where}{name}" for where, name, _ in files], shape, row, progress)


def try_rows(
    names: Sequence[str], shape: Shape, row: Callable[[int], Images], progress: Progress
) -> tuple[Images, list[BadImage]]:
    """Return row(0), row(1), …, an image for each of `names`, and those that do not decode, by row.

    row: raises UndecodableError or DamagedEntryError for an image that does not.
    """
    bad: list[BadImage] = []

    def compute(number: int) -> Images:
        try:
            return row(number)
        except (UndecodableError, DamagedEntryError) as error:
            reason = f"damaged: {error.reason}" if isinstance(error, DamagedEntryError) else str(error)
            bad.append(BadImage(number, names[number], reason))
            return np.zeros(shape, np.uint8)

    with warnings.catch_warnings():
        # Of damaged EXIF data, beside which the image decodes.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        images = compute_rows(len(names), shape, compute, progress)
    return images, sorted(bad)


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
def explain_decode_errors() -> Iterator[None]:
    """Turn Pillow's errors for a damaged or absurdly large file into UndecodableError with the reason."""
    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        yield
    except UndecodableError:
        raise
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, struct.error, *bombs) as error:
        raise UndecodableError(" ".join(str(error).split()) or type(error).__name__) from error


def image_decoder(size: int, channels: int, formats: tuple[str, ...] = FORMATS) -> Callable[..., Images]:
    """Return a function from a file in any of `formats`, whatever its suffix, to [channels, size, size] uint8.

    Its second argument is a box, which is resized without regard to proportions; None for the central square.
    """

    def decode(content: bytes, box: Box | None = None) -> Images:
        with _open_upright(content, formats) as image:
            return resize_square(image, size, channels) if box is None else _resize_box(image, box, size, channels)

    return decode


def drawing_decoder(size: int) -> Callable[[bytes], Images]:
    """Return a function from a file of dark ink on light paper to [1, size, size] uint8, in which ink is 255."""

    def decode(content: bytes) -> Images:
        with _open_upright(content) as image:
            return resize_square(ImageOps.invert(_flatten(image).convert("L")), size, 1)

    return decode


@contextmanager
def _open_upright(content: bytes, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
    except UnidentifiedImageError as error:
        raise UndecodableError(name_format(content)) from error
    with image:
        if image.mode == "F":
            raise UndecodableError("its pixels are floating-point numbers, save it with 8 or 16 bits")
        ImageOps.exif_transpose(image, in_place=True)
        yield image


def resize_square(image: Image.Image, size: int, channels: int) -> Images:
    """Resize the central square of an image by Lanczos to [channels, size, size] uint8.

    channels: 3 for RGB, 1 for grey (ITU-R 601). Transparent pixels are blended with white; 16 bits become 8.
    """
    width, height = image.size
    side = min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    return _resize(image, box, size, channels)


def _resize_box(image: Image.Image, box: Box, size: int, channels: int) -> Images:
    """Resize the whole pixels of an image that a box touches. UndecodableError: there are none."""
    left, top, right, bottom = box
    inside = max(math.floor(left), 0), max(math.floor(top), 0)
    outside = min(math.ceil(right), image.width), min(math.ceil(bottom), image.height)
    if inside[0] >= outside[0] or inside[1] >= outside[1]:
        raise UndecodableError(f"it has {image.width}×{image.height} pixels, and its box lies outside")
    part = image.crop((*inside, *outside))  # a filter would reach over the edges of a box
    return _resize(part, (0, 0, *part.size), size, channels)


def _resize(image: Image.Image, box: Box, size: int, channels: int) -> Images:
    plain = _flatten(image).convert("RGB" if channels == 3 else "L")
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
