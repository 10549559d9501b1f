"""Raw archives: a zip, or the folder it unpacks to, read alike and never written to."""

import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, NamedTuple

from tasks.store.cache import RawFile, is_hidden

_REMEDY = "put a whole copy in its place"
_BLOCK = 2**20


@dataclass(frozen=True)
class Archive:
    """Where the files below `folder/` are: in the zip `path`, or in the folder `path` whose name is `folder`.

    With folder "", they are whatever the zip or the folder `path` holds.
    """

    path: Path
    folder: str = ""

    @property
    def is_zip(self) -> bool:
        """Whether `path` is a zip rather than an unpacked folder."""
        return self.path.suffix.lower() == ".zip" and not self.path.is_dir()


class Contents(NamedTuple):
    """An open archive. Hidden files, and what macOS adds to zips, are left out."""

    names: list[str]
    """Of all its files, in order, "/" between folders."""
    read: Callable[[str], bytes]
    """The content of one. Threads may call it together. Raises ValueError for what is damaged."""
    raw: Callable[[str], RawFile]
    """What one holds: a zip's own directory tells, and a file in a folder is read."""
    stamp: Callable[[str], tuple[Any, ...]]
    """What changes when one changes, without reading it."""


def find_archive(roots: list[Path], folder: str) -> Archive | None:
    """The first `folder.zip`, or else folder of that name, in any of `roots`."""
    for path in (root / name for root in roots for name in (f"{folder}.zip", folder)):
        if path.exists():
            return Archive(path, folder)
    return None


@contextmanager
def opened(archive: Archive) -> Iterator[Contents]:
    """The contents of an archive. Raises ValueError, with the remedy, for one that is damaged or climbs out of itself.

    Of two files of one name, which a zip may have, the last counts.
    """
    if not archive.is_zip:
        yield _folder_contents(archive)
        return
    with _zip(archive.path) as handle:
        yield _zip_contents(archive.path, handle)


def raw_files(archive: Archive, suffix: str) -> list[RawFile]:
    """Its files that end in `suffix`, in order of name."""
    with opened(archive) as contents:
        return [contents.raw(name) for name in contents.names if name.endswith(suffix)]


def _zip_contents(path: Path, handle: zipfile.ZipFile) -> Contents:
    files: dict[str, RawFile] = {}
    for entry in handle.infolist():
        if _climbs_out(entry.filename):
            raise ValueError(f"{path}: the entry {entry.filename!r} climbs out of the archive: {_REMEDY}")
        if not entry.is_dir() and not is_hidden(entry.filename):
            files[entry.filename] = RawFile(entry.filename, entry.file_size, entry.CRC)
    # zipfile counts its readers without a lock of its own.
    lock = Lock()

    def read(name: str) -> bytes:
        try:
            with lock:
                return handle.read(name)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError) as error:
            raise ValueError(f"{path}: {name} is damaged ({error}): {_REMEDY}") from error

    return Contents(sorted(files), read, files.__getitem__, files.__getitem__)


def _folder_contents(archive: Archive) -> Contents:
    paths = dict(_walk(archive.path, archive.folder, ()))

    def read(name: str) -> bytes:
        with _readable(paths[name]):
            return paths[name].read_bytes()

    def stamp(name: str) -> tuple[Any, ...]:
        with _readable(paths[name]):
            found = paths[name].stat()
        return (name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    return Contents(sorted(paths), read, lambda name: _checked(name, paths), stamp)


def _checked(name: str, paths: Mapping[str, Path]) -> RawFile:
    size = crc32 = 0
    with _readable(paths[name]), paths[name].open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc32 = size + len(block), zlib.crc32(block, crc32)
    return RawFile(name, size, crc32)


def _walk(folder: Path, name: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, Path]]:
    """Name and path of every file below a folder, links followed. above: device and inode of the folders around it."""
    with _readable(folder):
        found = folder.stat()
        here = (*above, (found.st_dev, found.st_ino))
        if here[-1] in above:
            raise ValueError(f"{folder} is a link to a folder that it lies in: remove the link")
        with os.scandir(folder) as entries:
            # A link that leads nowhere is kept: whoever needs the file is told.
            kinds = [(e.name, e.is_dir(), e.is_file() or e.is_symlink()) for e in entries if not is_hidden(e.name)]
    for part, is_folder, is_file in kinds:
        inner = f"{name}/{part}" if name else part
        if is_folder:
            yield from _walk(folder / part, inner, here)
        elif is_file:
            yield inner, folder / part


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise ValueError(f"cannot read {where} ({error.strerror}): mend or remove it") from error


def _zip(path: Path) -> zipfile.ZipFile:
    try:
        with _readable(path):
            return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is not a whole zip ({error}): {_REMEDY}") from error


def _climbs_out(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":")
