"""Decode raw images with Pillow into rows of a store, on all cores. Imported only where a store is built.

Training reads stores without Pillow.
"""

import io
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.store.archive import Archive, DamagedEntryError, open_archive
from tasks.store.image_formats import name_format
from tasks.store.store import Images
from tasks.types import Progress, Shape

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")

_SHOWN = 5
"""Images that do not decode which a message names; all are listed in a file."""

_CHUNK = 64
"""Rows between two calls of progress."""


class UndecodableError(ValueError):
    """A file that does not decode; its text is the reason."""


class BadImage(NamedTuple):
    """An image that does not decode: its row, its file and why."""

    row: int
    name: str
    reason: str


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
    decode: Callable[[bytes], Images],
    progress: Progress,
) -> tuple[Images, list[BadImage]]:
    """Return decode(content) of all files, in the order of `sources`, and the files that do not decode, by row."""
    bad: list[BadImage] = []
    with ExitStack() as stack:
        files: list[tuple[str, str, Callable[[str], bytes]]] = []
        for archive, names in sources:
            read = stack.enter_context(open_archive(archive)).read
            where = "" if len(sources) == 1 else f"{archive.path}: "
            files += [(where, name, read) for name in names]

        def row(number: int) -> Images:
            where, name, read = files[number]
            try:
                content = read(name)
                with explain_decode_errors():
                    return decode(content)
            except (UndecodableError, DamagedEntryError) as error:
                reason = f"damaged: {error.reason}" if isinstance(error, DamagedEntryError) else str(error)
                bad.append(BadImage(number, f"{where}{name}", reason))
                return np.zeros(shape, np.uint8)

        with warnings.catch_warnings():
            # Of damaged EXIF data, beside which the image decodes.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            images = compute_rows(len(files), shape, row, progress)
    return images, sorted(bad)


def explain_bad_images(where: str, bad: Sequence[BadImage], kind: str, report: Path | None, skip: str = "") -> str:
    """Return one line that names the bad images, their reasons and the remedy. skip: a further remedy.

    report: a file in which all are listed if the line does not show them.
    """
    remedy = f"replace {'it by a complete copy' if len(bad) == 1 else 'them by complete copies'}{skip}"
    if len(bad) == 1:
        return f"{where}{bad[0].name} does not decode as {kind} ({bad[0].reason}): {remedy}"
    shown = ", ".join(f"{image.name} ({image.reason})" for image in bad[:_SHOWN])
    more = ""
    if len(bad) > _SHOWN:
        more = f" and {len(bad) - _SHOWN:,} more"
        if report is not None:
            with suppress(OSError):
                report.parent.mkdir(parents=True, exist_ok=True)
                report.write_text("".join(f"{image.name}\t{image.reason}\n" for image in bad), encoding="utf-8")
                more += f" (all of them in {report})"
    return f"{where}{len(bad):,} files do not decode as {kind}: {shown}{more}: {remedy}"


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


def image_decoder(size: int, channels: int) -> Callable[[bytes], Images]:
    """Return a function from a file in any of FORMATS, whatever its suffix, to [channels, size, size] uint8."""

    def decode(content: bytes) -> Images:
        with _open_upright(content) as image:
            return resize_square(image, size, channels)

    return decode


def drawing_decoder(size: int) -> Callable[[bytes], Images]:
    """Return a function from a file of dark ink on light paper to [1, size, size] uint8, in which ink is 255."""

    def decode(content: bytes) -> Images:
        with _open_upright(content) as image:
            return resize_square(ImageOps.invert(_flatten(image).convert("L")), size, 1)

    return decode


@contextmanager
def _open_upright(content: bytes) -> Iterator[Image.Image]:
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
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
