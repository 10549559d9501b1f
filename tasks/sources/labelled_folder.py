"""Read a few images of a user's own, labelled by their folders or not at all, as a task source decodes them."""

import os
from collections.abc import Callable
from typing import NamedTuple

from tasks.io.home import home_path
from tasks.sources.image_layout import common_folder
from tasks.sources.image_names import SUFFIXES, is_image
from tasks.store.archive import Archive, open_archive
from tasks.store.store import Images
from tasks.text import count_of, enumerate_few
from tasks.types import Shape, no_progress


class FolderImages(NamedTuple):
    """Images [n, C, H, W] uint8 of a folder or a zip, in order of their files.

    folders: the folder of each file, below the innermost one that holds all images; "" for files directly in that.
    left_out: the files that are no images, in words; empty if there are none.
    """

    images: Images
    files: list[str]
    folders: list[str]
    left_out: str


def read_labelled_folder(
    place: str | os.PathLike[str], shape: Shape, decode: Callable[[bytes], Images]
) -> FolderImages:
    """Read the images of a folder for each class. ValueError: there are none, or some lie in no class's folder."""
    found = read_image_folder(place, shape, decode)
    wanted = "use a folder that holds a folder of images for each class"
    loose = [file for file, folder in zip(found.files, found.folders, strict=True) if not folder]
    if len(loose) == len(found.files):
        raise ValueError(f"{place}: {count_of(len(loose), 'image')} in one folder, and labels are folders: {wanted}")
    if loose:
        which = f"{count_of(len(loose), 'image')} in no class's folder ({enumerate_few(loose)})"
        raise ValueError(f"{place}: {which}: move or remove {'it' if len(loose) == 1 else 'them'}")
    return found


def read_image_folder(place: str | os.PathLike[str], shape: Shape, decode: Callable[[bytes], Images]) -> FolderImages:
    """Read all images below a folder, or in a zip, decoded to [*shape] each. Every file that does not decode is named.

    ValueError: there is no such folder, it holds no images, or some do not decode.
    """
    from tasks.store.decoding import decode_files  # Pillow, which learning does without

    if not isinstance(place, str | os.PathLike):
        raise ValueError(f"folder: a {type(place).__name__} is no path: use that of a folder with images")
    archive = Archive(home_path(place))
    if not (archive.is_zip and archive.path.is_file()) and not archive.path.is_dir():
        raise ValueError(f"{place}: there is no such folder or zip: use the path of one with images")
    with open_archive(archive) as contents:
        files = [name for name in contents.names if is_image(name)]
        others = [name for name in contents.names if not is_image(name)]
    left_out = f"{count_of(len(others), 'file')} that are no images ({enumerate_few(others)})" if others else ""
    if not files:
        beside = f", but {left_out}" if others else ""
        raise ValueError(f"{place}: holds no images ({', '.join(SUFFIXES)}){beside}: use a folder with images")
    images = decode_files([(archive, files)], shape, decode, "an image", no_progress)
    start = len(common_folder(files))
    folders = [name[start:].partition("/")[0] if "/" in name[start:] else "" for name in files]
    return FolderImages(images, files, folders, left_out)
