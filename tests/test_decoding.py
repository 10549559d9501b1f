"""Images of every kind to squares of 8 bits, what is damaged refused, and no more in memory than is being decoded."""

import io
import struct
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tasks.store.archive import Archive
from tasks.store.decoding import (
    UndecodableError,
    compute_rows,
    decode_files,
    explain_decode_errors,
    image_decoder,
    resize_square,
)
from tasks.types import no_progress
from tests import pictures

RED = (200, 40, 90)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def flat(mode: str, colour: object, side: int = 16) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def sixteen_bits(value: int) -> Image.Image:
    return Image.fromarray(np.full((16, 16), value, dtype=np.uint16))


def palette() -> Image.Image:
    return flat("RGB", RED).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)


def palette_with_a_hole() -> bytes:
    image = flat("P", 0)
    image.putpalette([*RED, 0, 0, 0])
    return saved(image, "PNG", transparency=0)


KINDS: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "png": (saved(flat("RGB", RED), "PNG"), RED),
    "jpeg": (saved(flat("RGB", RED), "JPEG", quality=95), RED),
    "bmp": (saved(flat("RGB", RED), "BMP"), RED),
    "webp": (saved(flat("RGB", RED), "WEBP", lossless=True), RED),
    "gif": (saved(palette(), "GIF"), RED),
    "palette": (saved(palette(), "PNG"), RED),
    "palette, transparent": (palette_with_a_hole(), (255, 255, 255)),
    "grey": (saved(flat("L", 77), "PNG"), (77, 77, 77)),
    "grey jpeg": (saved(flat("L", 77), "JPEG"), (77, 77, 77)),
    "one bit": (saved(flat("1", 1), "PNG"), (255, 255, 255)),
    "16 bits": (saved(sixteen_bits(30000), "PNG"), (117, 117, 117)),
    "16 bits, white": (saved(sixteen_bits(65535), "PNG"), (255, 255, 255)),
    "opaque": (saved(flat("RGBA", (*RED, 255)), "PNG"), RED),
    "transparent": (saved(flat("RGBA", (*RED, 0)), "PNG"), (255, 255, 255)),
    "half transparent": (saved(flat("RGBA", (*RED, 128)), "PNG"), (227, 147, 172)),
    "grey, half transparent": (saved(flat("LA", (0, 128)), "PNG"), (127, 127, 127)),
    "tiff": (saved(flat("RGB", RED), "TIFF"), RED),
    "tiff, compressed": (saved(flat("RGB", RED), "TIFF", compression="tiff_lzw"), RED),
    "tiff, 16 bits": (saved(sixteen_bits(30000), "TIFF"), (117, 117, 117)),
    "cmyk": (saved(flat("CMYK", (0, 204, 102, 51)), "JPEG", quality=95), (204, 41, 122)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_decodes_to_colour_and_to_grey(kind: str) -> None:
    content, colour = KINDS[kind]
    found = image_decoder(8, 3)(content)
    assert found.shape == (3, 8, 8)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - np.array(colour)[:, None, None]).max() <= 3
    grey = image_decoder(8, 1)(content)
    assert grey.shape == (1, 8, 8)
    assert np.abs(grey.astype(int) - round(np.dot(colour, (0.299, 0.587, 0.114)))).max() <= 3


def quarters() -> NDArray[np.uint8]:
    """[16, 16, 3]: red and green above, blue and white below."""
    array = np.zeros((16, 16, 3), dtype=np.uint8)
    array[:8, :8, 0] = array[:8, 8:, 1] = array[8:, :8, 2] = 255
    array[8:, 8:] = 255
    return array


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_camera_held_any_way_gives_an_upright_image(kind: str, orientation: int) -> None:
    """EXIF's orientation tells how the rows and columns that were saved lie in the scene."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    undo |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    image = Image.fromarray(quarters())
    if orientation in undo:
        image = image.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = image_decoder(16, 3)(saved(image, kind, exif=exif.tobytes(), quality=95))
    for row, column in ((3, 3), (3, 12), (12, 3), (12, 12)):
        assert np.abs(found[:, row, column].astype(int) - quarters()[row, column]).max() < 30


@given(
    side=st.integers(1, 20),
    times=st.sampled_from([1, 3, 5]),
    wide=st.booleans(),
    size=st.integers(1, 30),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=100, deadline=None)
def test_the_shorter_side_is_resized_and_the_longer_cut_off_on_both_ends(
    side: int, times: int, wide: bool, size: int, channels: int
) -> None:
    shape = (side, side * times, 3) if wide else (side * times, side, 3)
    array = np.random.default_rng(0).integers(90, 166, shape, dtype=np.uint8)  # clips nowhere
    image = Image.fromarray(array).convert("RGB" if channels == 3 else "L")
    whole = np.asarray(image.resize((size * times, size) if wide else (size, size * times), Image.Resampling.LANCZOS))
    start = size * (times - 1) // 2
    middle = whole[:, start : start + size] if wide else whole[start : start + size]
    expected = middle.reshape(size, size, channels).transpose(2, 0, 1)
    assert np.abs(resize_square(Image.fromarray(array), size, channels).astype(int) - expected).max() <= 2


@given(width=st.integers(1, 60), height=st.integers(1, 60), size=st.integers(1, 40), channels=st.sampled_from([1, 3]))
@settings(max_examples=100, deadline=None)
def test_any_shape_gives_a_square(width: int, height: int, size: int, channels: int) -> None:
    found = resize_square(Image.new("RGB", (width, height), "white"), size, channels)
    assert found.shape == (channels, size, size)
    assert (found == 255).all()


def test_shrinking_averages_and_does_not_skip() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[::2] = 255
    assert np.abs(resize_square(Image.fromarray(stripes), 8, 3).astype(int) - 127).max() < 12


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    assert np.array_equal(resize_square(Image.fromarray(quarters()), 16, 3), quarters().transpose(2, 0, 1))


def huge_png(side: int) -> bytes:
    """A few bytes that claim side × side pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def decode_one(folder: Path, content: bytes) -> NDArray[np.uint8]:
    (folder / "one.png").write_bytes(content)
    return decode_files([(Archive(folder), ["one.png"])], (3, 8, 8), image_decoder(8, 3), "an image", no_progress)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"not a picture", "unknown format"),
        (saved(flat("RGB", RED), "AVIF"), "it is an AVIF image, convert it to PNG or JPEG"),
        (b"version https://git-lfs.github.com/spec/v1", "it is a pointer of Git LFS"),
        (saved(flat("F", 0.5), "TIFF"), "floating-point numbers, save it with 8 or 16 bits"),
        (KINDS["png"][0][:60], ""),
        (saved(Image.fromarray(pictures.pixels(1, 1)), "JPEG")[:-80], "truncated"),
        (huge_png(40_000), "decompression bomb"),
        (huge_png(10_000), "decompression bomb"),
    ],
    ids=["empty", "text", "avif", "git lfs", "real numbers", "half a png", "half a jpeg", "bomb", "lesser bomb"],
)
def test_what_does_not_decode_is_named_with_the_remedy(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(
        ValueError, match=rf"one\.png does not decode as an image \(.*{reason}.*replace it by a complete copy"
    ) as error:
        decode_one(tmp_path, content)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    exif=st.binary(max_size=40),
)
@settings(max_examples=400, deadline=None)
@pytest.mark.filterwarnings("ignore:::PIL")
def test_damage_gives_an_image_or_one_line(kind: str, cut: float, flips: list[tuple[float, int]], exif: bytes) -> None:
    content = bytearray(KINDS[kind][0])
    if content[:2] == b"\xff\xd8":
        content[2:2] = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    content = content[: len(content) - int(cut**4 * len(content))]
    for place, change in flips:
        if content:
            content[int(place * len(content))] ^= change
    try:
        with explain_decode_errors():
            assert image_decoder(4, 3)(bytes(content)).shape == (3, 4, 4)
    except UndecodableError as error:
        assert str(error)
        assert "\n" not in str(error)


def test_rows_come_in_order_and_progress_rises_to_the_end() -> None:
    calls: list[tuple[int, int]] = []
    found = compute_rows(
        300, (2,), lambda row: np.full(2, row % 256, np.uint8), lambda done, total: calls.append((done, total))
    )
    assert np.array_equal(found, np.repeat(np.arange(300) % 256, 2).reshape(300, 2))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (300, 300)
    assert len(calls) > 2
    assert compute_rows(0, (3, 4), lambda row: np.zeros((3, 4), np.uint8), no_progress).shape == (0, 3, 4)


def test_rows_are_computed_on_several_threads() -> None:
    threads: set[int] = set()
    both = threading.Barrier(2)

    def row(number: int) -> NDArray[np.uint8]:
        if number in (0, 64):  # the first of either chunk waits for the other
            both.wait(timeout=20)
        threads.add(threading.get_ident())
        return np.zeros(1, np.uint8)

    compute_rows(128, (1,), row, no_progress)
    assert len(threads) == 2


def test_the_first_failure_in_order_is_told_and_stops_the_rest() -> None:
    seen: list[int] = []

    def row(number: int) -> NDArray[np.uint8]:
        seen.append(number)
        if number >= 130:
            raise ValueError(f"row {number}")
        return np.zeros(1, np.uint8)

    with pytest.raises(ValueError, match=r"^row 130$"):
        compute_rows(100_000, (1,), row, no_progress)
    assert len(seen) < 50_000


def test_raw_files_are_held_one_at_a_time(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(200)]
    for name in names:
        (tmp_path / name).write_bytes(bytes(500_000))
    tracemalloc.start()
    try:
        sources = [(Archive(tmp_path), names)]
        decode_files(sources, (1,), lambda content: np.zeros(1, np.uint8), "a file", no_progress)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_a_zip_read_by_several_threads_gives_each_its_own(tmp_path: Path) -> None:
    contents = {f"{number:03}.png": bytes([number % 251]) * 3000 for number in range(500)}
    archive = Archive(pictures.write_zip(tmp_path / "a.zip", contents))
    found = decode_files(
        [(archive, sorted(contents))], (1,), lambda c: np.frombuffer(c[:1], np.uint8), "a file", no_progress
    )
    assert found[:, 0].tolist() == [number % 251 for number in range(500)]
