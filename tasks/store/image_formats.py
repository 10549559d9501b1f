"""Say what a file is that does not decode, by its first bytes."""

_CONVERT = "convert it to PNG or JPEG"
_MARKS = (
    (4, b"ftypavi", "an AVIF image"),
    (4, b"ftyphei", "an HEIC image"),
    (4, b"ftyphev", "an HEIC image"),
    (4, b"ftypmif1", "an HEIF image"),
    (4, b"ftypmsf1", "an HEIF image"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"II*\0", "a TIFF image of a kind that is not read"),
    (0, b"MM\0*", "a TIFF image of a kind that is not read"),
    (0, b"II+\0", "a BigTIFF image"),
    (0, b"MM\0+", "a BigTIFF image"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"P5", "a PGM image"),
    (0, b"P6", "a PPM image"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML or SVG file"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"PK\x03\x04", "a zip"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
)
"""Place and first bytes of files that people give the suffix of an image."""


def name_format(content: bytes) -> str:
    """Say what a file is that no decoder here reads, and what to do with it."""
    if not content:
        return "it is empty"
    if content.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, fetch the images with `git lfs pull`"
    for at, mark, name in _MARKS:
        if content[at : at + len(mark)] == mark:
            return f"it is {name}, {_CONVERT}"
    return "unknown format"
