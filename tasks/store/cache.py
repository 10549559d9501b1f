"""Build slow files once per machine, in a cache folder, under keys computed from the content they are built from."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tasks.io.atomic import atomic_write
from tasks.io.files import open_unlinked
from tasks.io.home import home_path
from tasks.io.remote_fs import is_uri


class FileChecksum(NamedTuple):
    """Name, size in bytes and CRC-32 of a raw file; `name` is relative to its archive or folder."""

    name: str
    size: int
    crc32: int


def is_hidden(name: str) -> bool:
    """Return whether a file is hidden, or one that macOS adds to zips. name: with "/" between folders."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def cache_root(setting: str | None) -> Path:
    """Return the cache folder of this machine: the setting, else $METATRAIN_CACHE, else $XDG_CACHE_HOME/metatrain.

    A setting that is a URI names a cache that machines share; each keeps its own part in the folder for None.
    """
    variable = os.environ.get("METATRAIN_CACHE")
    if variable and is_uri(variable):
        remedy = "set it to a folder of this machine, and tasks.cache to the URI"
        raise ValueError(f"METATRAIN_CACHE is {variable}: {remedy}")
    named = variable if setting is None or is_uri(setting) else setting or variable
    if named:
        return home_path(named).absolute()
    return home_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").absolute() / "metatrain"


def content_key(files: Iterable[FileChecksum], preprocessing: str, version: int) -> str:
    """Return the key of what `preprocessing` makes of `files`: equal content in equal places gives an equal key."""
    return digest([sorted(files), preprocessing, version])


def digest(content: Any) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of `content` as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def cached_key(root: Path, name: str, stamps: Iterable[tuple[Any, ...]], recipe: str, key: Callable[[], str]) -> str:
    """Return `key()`, which reads every raw file, or the result noted for equal `stamps`: then none has changed."""
    note = root / name / f"{digest([list(stamps), recipe])}.key"
    known = read_key(note)
    if known is not None:
        return known
    found = key()
    write_key(note, found)
    return found


def read_key(note: Path) -> str | None:
    """Return the key in a note's first line; None if the note is missing or damaged."""
    with suppress(OSError, UnicodeDecodeError):
        known = note.read_text().partition("\n")[0].strip()
        if re.fullmatch("[0-9a-f]{32}", known):
            return known
    return None


def write_key(note: Path, text: str) -> None:
    """Note a key, and lines below it.

    Ignores a cache that cannot be written: `lock_file` reports that before anything is built.
    """
    with suppress(OSError), atomic_write(note) as temporary:
        temporary.write_text(text)


def build_once(root: Path, name: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the file `root/name/key.arrow`, built by `build(path)` if it does not exist.

    `build` must put the file in place atomically. Of processes that ask at the same time, one builds and others wait.
    """
    path = root / name / f"{key}.arrow"
    if path.exists():
        return path
    with lock_file(path.with_suffix(".lock")):
        if not path.exists():
            build(path)
    return path


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. The system releases it if this process dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open_unlinked(path, "a")
    except OSError as error:
        remedy = "set tasks.cache=FOLDER (or METATRAIN_CACHE) to a folder you may write to"
        raise OSError(f"cannot write to the cache {path.parent} ({error.strerror}): {remedy}") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
