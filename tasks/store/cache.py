"""The cache on this machine: what is slow to build is built once, under a key that names its content.

The raw files that something is built from are only ever read.
"""

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
from tasks.io.remote_fs import is_uri


class RawFile(NamedTuple):
    """One raw file, by what it holds: `name` is relative to the archive or folder it lies in."""

    name: str
    size: int
    crc32: int


def is_hidden(name: str) -> bool:
    """Whether a file is none of the data: hidden, or what macOS adds to zips. name: with "/" between folders."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def cache_root(setting: str | None) -> Path:
    """The folder of the cache: the setting, else $METATRAIN_CACHE, else $XDG_CACHE_HOME/metatrain.

    A setting that is a URI names what machines share; each keeps its own part where it would without the setting.
    """
    kept = os.environ.get("METATRAIN_CACHE")
    if kept and is_uri(kept):
        raise ValueError(f"METATRAIN_CACHE is {kept}: set it to a folder of this machine, and tasks.cache to the URI")
    named = kept if setting is None or is_uri(setting) else setting or kept
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "metatrain"


def content_key(files: Iterable[RawFile], preprocessing: str, version: int) -> str:
    """A key for what `preprocessing` makes of `files`: equal content in equal places gives an equal key."""
    return digest([sorted(files), preprocessing, version])


def digest(content: Any) -> str:
    """32 hexadecimal digits for what JSON can say."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def remembered_key(
    root: Path, name: str, stamps: Iterable[tuple[Any, ...]], recipe: str, key: Callable[[], str]
) -> str:
    """`key()`, which has to read every raw file, kept under what tells without reading that none has changed."""
    note = root / name / f"{digest([list(stamps), recipe])}.key"
    known = noted_key(note)
    if known is not None:
        return known
    found = key()
    note_key(note, found)
    return found


def noted_key(note: Path) -> str | None:
    """The key in a note; None where there is none, or half of one."""
    with suppress(OSError, UnicodeDecodeError):
        known = note.read_text().strip()
        if re.fullmatch("[0-9a-f]{32}", known):
            return known
    return None


def note_key(note: Path, key: str) -> None:
    """Keep a key. A cache that cannot be written remembers nothing; whoever builds into it is told."""
    with suppress(OSError), atomic_write(note) as temporary:
        temporary.write_text(key)


def build_once(root: Path, name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The file `root/name/key.arrow`, built by `build(path)` where it is not there yet.

    `build` must put the file in place atomically. Processes that ask at the same time wait for one of them.
    """
    path = root / name / f"{key}.arrow"
    if path.exists():
        return path
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            build(path)
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for as long as the block runs. The system lets go of it should we die."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError as error:
        remedy = "set tasks.cache=FOLDER (or METATRAIN_CACHE) to a folder you may write to"
        raise OSError(f"cannot write to the cache {path.parent} ({error.strerror}): {remedy}") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
