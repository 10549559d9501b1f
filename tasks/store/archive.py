"""Read raw archives: a zip, or the folder it unpacks to, through one interface that never writes to them."""

import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from tasks.io.names import check_name
from tasks.store.cache import FileChecksum, is_hidden

_REMEDY = "replace it by a complete copy"
_BLOCK = 2**20
_LARGEST = 2**30
"""Bytes of the largest file that is unpacked: a zip of a megabyte may hold gigabytes of zeros."""


@dataclass(frozen=True)
class Archive:
    """Location of the files below `folder/`: in the zip `path`, or in the folder `path` whose name is `folder`.

    With folder "", they are all files of the zip or the folder `path`.
    """

    path: Path
    folder: str = ""

    @property
    def is_zip(self) -> bool:
        """Return whether `path` is a zip rather than an unpacked folder."""
        return self.path.suffix.lower() == ".zip" and not self.path.is_dir()


class DamagedEntryError(ValueError):
    """A file in a zip that cannot be unpacked. `reason` says why in a few words."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.args[0]} is damaged ({self.reason}): {_REMEDY}"


class OpenArchive(NamedTuple):
    """Reader of an archive, without hidden files and those that macOS adds to zips."""

    names: list[str]
    """Names of all files, sorted, "/" between folders."""
    read: Callable[[str], bytes]
    """Return the content of one file. Thread-safe. ValueError: it is damaged."""
    checksum: Callable[[str], FileChecksum]
    """Return the checksum of one file: from a zip's directory, else by reading the file."""
    stamp: Callable[[str], tuple[Any, ...]]
    """Return values that change when the file changes, without reading it."""


Opener = Callable[[Archive], AbstractContextManager[OpenArchive]]
"""Opens an archive, as `open_archive` does."""


class Crop(NamedTuple):
    """The part of an image file within a box: left, top, right and bottom, in pixels from the upper left corner."""

    file: str
    box: tuple[float, float, float, float]


def find_archive(roots: list[Path], folder: str) -> Archive | None:
    """Return the first `folder.zip`, or else folder of that name, in any of `roots`."""
    for path in (root / name for root in roots for name in (f"{folder}.zip", folder)):
        if path.exists():
            return Archive(path, folder)
    return None


@contextmanager
def open_archive(archive: Archive) -> Iterator[OpenArchive]:
    """Open an archive. Duplicate zip entries: the last wins. ValueError: it is damaged, or a path leads outside."""
    if not archive.is_zip:
        yield _read_folder(archive)
        return
    try:
        with _explain_errors(archive.path):
            handle = zipfile.ZipFile(archive.path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive.path} is not a complete zip ({error}): {_REMEDY}") from error
    with handle:
        yield _read_zip(archive.path, handle)


def _read_zip(path: Path, handle: zipfile.ZipFile) -> OpenArchive:
    files: dict[str, FileChecksum] = {}
    entries: dict[str, str] = {}
    for entry in handle.infolist():
        name = entry.filename.replace("\\", "/")  # some programs on Windows write back slashes
        check_name(name.removesuffix("/"), str(path))
        if entry.file_size > _LARGEST:
            raise ValueError(f"{path}: {entry.filename} would unpack to {entry.file_size / 1e9:.3g} GB: {_REMEDY}")
        if not name.endswith("/") and not is_hidden(name):
            files[name] = FileChecksum(name, entry.file_size, entry.CRC)
            entries[name] = entry.filename
    lock = Lock()  # zipfile counts its readers without one

    def read(name: str) -> bytes:
        try:
            with lock:
                return handle.read(entries[name])
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError) as error:
            raise DamagedEntryError(f"{path}: {name}", " ".join(str(error).split())) from error

    return OpenArchive(sorted(files), read, files.__getitem__, files.__getitem__)


def _read_folder(archive: Archive) -> OpenArchive:
    paths = dict(_walk(archive.path, archive.folder, ()))

    def read(name: str) -> bytes:
        with _explain_errors(paths[name]):
            return paths[name].read_bytes()

    def stamp(name: str) -> tuple[Any, ...]:
        with _explain_errors(paths[name]):
            found = paths[name].stat()
        return (name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    return OpenArchive(sorted(paths), read, lambda name: _compute_checksum(name, paths), stamp)


def _compute_checksum(name: str, paths: Mapping[str, Path]) -> FileChecksum:
    size = crc32 = 0
    with _explain_errors(paths[name]), paths[name].open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc32 = size + len(block), zlib.crc32(block, crc32)
    return FileChecksum(name, size, crc32)


def _walk(folder: Path, name: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every file below a folder, following links. above: (device, inode) of its parents."""
    with _explain_errors(folder):
        found = folder.stat()
        here = (*above, (found.st_dev, found.st_ino))
        if here[-1] in above:
            raise ValueError(f"{folder} is a link to a folder that it lies in: remove the link")
        with os.scandir(folder) as entries:
            # A broken link is listed too: reading it then raises an error that names it.
            kinds = [(e.name, e.is_dir(), e.is_file() or e.is_symlink()) for e in entries if not is_hidden(e.name)]
    for part, is_folder, is_file in kinds:
        inner = f"{name}/{part}" if name else part
        if is_folder:
            yield from _walk(folder / part, inner, here)
        elif is_file:
            yield inner, folder / part


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise ValueError(f"cannot read {where} ({error.strerror}): fix or remove it") from error
