"""Open files that a stranger may have made: no device or pipe, of bounded size, and written through no link."""

import errno
import os
import stat
from pathlib import Path
from typing import IO, Any

LARGEST = 64 * 2**20
"""Bytes of the largest document that is read as a whole."""


def read_document(path: Path, limit: int = LARGEST) -> bytes:
    """Return the content of a file. OSError: it cannot be read. ValueError: it is no plain file, or too large."""
    with open_plain(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path}: larger than {limit / 2**20:g} MiB: restore or remove that file")
    return content


def open_plain(path: Path) -> IO[bytes]:
    """Open a file to read its bytes. OSError: it cannot be read. ValueError: it is a device or a pipe."""
    return open(path, "rb", opener=_open_plain)


def read_document_text(path: Path, limit: int = LARGEST) -> str:
    """Return the text of a file in UTF-8. UnicodeDecodeError: it is not; otherwise see `read_document`."""
    return read_document(path, limit).decode("utf-8")


def open_unlinked(path: Path, mode: str) -> IO[Any]:
    """Open a file as `open` does, to write to it. ValueError: the path is a link, or no plain file."""
    encoding = None if "b" in mode else "utf-8"
    try:
        return open(path, mode, encoding=encoding, opener=_open_no_link)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise link_error(path) from error
        raise


def refuse_link(path: Path) -> None:
    """Raise ValueError where `path` itself is a link, which is not written through."""
    if path.is_symlink():
        raise link_error(path)


def refuse_links(folder: Path) -> None:
    """Raise ValueError for the first link anywhere below `folder`, which may itself be reached through links.

    OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_symlink():
                raise link_error(Path(entry.path))
            if entry.is_dir(follow_symlinks=False):
                refuse_links(Path(entry.path))


def link_error(path: Path) -> ValueError:
    """Return the error about a link that would be written through."""
    return ValueError(f"{path}: is a link, and nothing is written or removed through links: remove it")


def refuse_special(path: Path) -> None:
    """Raise ValueError where `path` is a device, a pipe or a socket, which a file would take the place of."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path}: is a device or a pipe: name a file to write")


def _open_no_link(path: str, flags: int) -> int:
    return _open_plain(path, flags | os.O_NOFOLLOW)


def _open_plain(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _require_plain(descriptor, Path(path))
    except (OSError, ValueError):
        os.close(descriptor)
        raise
    return descriptor


def _require_plain(descriptor: int, path: Path) -> None:
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind):
        raise ValueError(f"{path}: is a device or a pipe, not a file: remove it")
