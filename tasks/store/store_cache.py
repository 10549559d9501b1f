"""From raw files to their store, both wherever they are: on this machine, or behind a URI.

A store is built once and kept in this machine's cache, and where `tasks.cache` is a URI, there too, once for all
machines. Raw files behind a URI are first copied here, once, by whoever has to build.

    CACHE/NAME/KEY.arrow    a store
    CACHE/NAME/STAMP.key    a note: the key of what these files with these settings make
    CACHE/raw/STAMP/        raw files of elsewhere, in the cache of a machine alone
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tasks.io.atomic import atomic_write, fsync
from tasks.io.remote_fs import Entry, Place, below, check_reachable, exists, fetch, is_uri, listing, place_at, publish
from tasks.store.cache import build_once, cache_root, digest, is_hidden, locked, note_key, noted_key
from tasks.store.store import FORMAT_VERSION, DamagedStoreError, Store, open_store

_CONNECTIONS = 16
"""Raw files that are copied at a time: small ones take as long as the way there and back."""
_FETCHES = 3
"""Of a store that arrives damaged, before it is taken to be damaged where it comes from."""
_NO_ROOM = "free some space, or set METATRAIN_CACHE to a folder you may write to"


class Raw(NamedTuple):
    """Raw files, on this machine or elsewhere."""

    called: str
    """What the user calls them: a path or a URI."""
    listed: Any
    """For JSON, what tells without having the files here that none has changed; None for those of this machine."""
    here: Callable[[], Path]
    """The folder or the file on this machine that holds them, copied first where it has to be."""


class Plan(NamedTuple):
    """How a store is made of raw files that are here: its content key, and what writes it, atomically, to a path."""

    key: str
    build: Callable[[Path], None]


def stored(name: str, raw: Raw, settings: Any, cache: str | None, plan: Callable[[Path], Plan]) -> Store:
    """The store that the source `name` makes of raw files, from the nearest place that has it, or else built.

    settings: for JSON, all that decides besides the files what the store holds. cache: the setting `tasks.cache`.

    Its key is content, which only someone who has the files can tell. So the key is noted under name, settings and the
    listing of the files (sizes and times), both here and in a shared cache. Once one machine has built a store, another
    asks for one listing of the files, one note and one store, and never for a raw file.
    """
    local, shared = cache_root(cache), place_at(cache) if cache and is_uri(cache) else None
    note = _Note(local, shared, name, digest([settings, FORMAT_VERSION, raw.called, raw.listed]))
    if raw.listed is not None:
        path = _recalled(note)
        if path is not None:
            return open_store(path)
        if shared is not None:
            check_reachable(shared)
    here = raw.here()
    with _called_as_given(raw, here):
        made = plan(here)
        path = build_once(local, name, made.key, partial(_fetch_or_build, shared, name, made))
    if shared is not None:
        _share(path, below(shared, f"{name}/{path.name}"))
    if raw.listed is not None:
        _remember(note, made.key)
    return open_store(path)


def raw_at(root: str, cache: str | None, needed: Callable[[Sequence[str]], Iterable[str]]) -> Raw:
    """The raw files at a path or a URI. needed: from the names of all files there to those worth copying."""
    if not is_uri(root):
        return Raw(root, None, lambda: Path(root).expanduser())
    place = place_at(root)
    try:
        folder, entries = listing(place)
    except FileNotFoundError as error:
        raise ValueError(
            f"{place.uri} is not there, or holds nothing: set tasks.root to where the files are"
        ) from error
    single = folder.uri != place.uri
    if not single:
        wanted = set(needed([entry.name for entry in entries if not is_hidden(entry.name)]))
        entries = [entry for entry in entries if entry.name in wanted]

    def here() -> Path:
        copied = _copied(cache_root(cache), folder, entries)
        return copied / entries[0].name if single else copied

    return Raw(place.uri, entries, here)


class _Note(NamedTuple):
    """Where a key is noted: on this machine, and, unless shared is None, in the shared cache."""

    local: Path
    shared: Place | None
    name: str
    stamp: str

    @property
    def here(self) -> Path:
        # A cache that is shared from now on is told what was noted here before.
        stamp = self.stamp if self.shared is None else digest([self.stamp, self.shared.uri])
        return self.local / self.name / f"{stamp}.key"

    @property
    def there(self) -> Place | None:
        return self.shared and below(self.shared, f"{self.name}/{self.stamp}.key")


def _recalled(note: _Note) -> Path | None:
    """The store whose key is noted, fetched where it has to be; None where note or store is nowhere to be had."""
    if noted_key(note.here) is None and note.there is not None:
        with suppress(FileNotFoundError), _written(note.local), atomic_write(note.here) as temporary:
            fetch(note.there, temporary)
    key = noted_key(note.here)
    if key is None:
        return None
    with suppress(FileNotFoundError):
        return build_once(note.local, note.name, key, partial(_fetch_store, note.shared, note.name))
    return None


def _remember(note: _Note, key: str) -> None:
    note_key(note.here, key)
    if note.there is not None:
        publish(note.here, note.there)


def _fetch_or_build(shared: Place | None, name: str, made: Plan, path: Path) -> None:
    try:
        _fetch_store(shared, name, path)
    except FileNotFoundError:
        if shared is not None:
            check_reachable(shared)
        made.build(path)


def _fetch_store(shared: Place | None, name: str, path: Path) -> None:
    """Fetch a store to `path`, once it is found whole. Raises FileNotFoundError where no shared cache has it."""
    if shared is None:
        raise FileNotFoundError("there is no shared cache")
    place = below(shared, f"{name}/{path.name}")
    for attempt in range(_FETCHES):
        try:
            with _written(path.parent), atomic_write(path) as temporary:
                fetch(place, temporary)
                open_store(temporary)
            return
        except DamagedStoreError as error:
            if attempt == _FETCHES - 1:
                remedy = "delete it there, and run `metatrain data prepare NAME` where the raw files are"
                raise ValueError(f"{place.uri} is damaged ({error.args[1]}): {remedy}") from error


def _share(path: Path, place: Place) -> None:
    with locked(path.with_suffix(".lock")):
        if not exists(place):
            publish(path, place)


def _copied(root: Path, folder: Place, entries: Sequence[Entry]) -> Path:
    """The folder on this machine with a copy of these files, made once; processes that ask together wait for one."""
    copy = root / "raw" / digest([folder.uri, entries])
    partial_copy = copy.with_name(f".{copy.name}")
    with locked(copy.with_name(f"{copy.name}.lock")):
        if not copy.exists():
            # What was left by one who died.
            shutil.rmtree(partial_copy, ignore_errors=True)
            with _written(copy.parent):
                partial_copy.mkdir()
                _copy_all(folder, entries, partial_copy)
                partial_copy.rename(copy)
                fsync(copy.parent)
    return copy


def _copy_all(folder: Place, entries: Sequence[Entry], target: Path) -> None:
    pool = ThreadPoolExecutor(_CONNECTIONS)
    try:
        for _ in pool.map(lambda entry: _copy(folder, entry, target), entries):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _copy(folder: Place, entry: Entry, target: Path) -> None:
    place = below(folder, entry.name)
    if entry.name.startswith("/") or ".." in entry.name.split("/"):
        raise ValueError(f"{place.uri} climbs out of its folder: remove it, or call it otherwise")
    path = target / entry.name
    path.parent.mkdir(parents=True, exist_ok=True)
    size = fetch(place, path)
    if size != entry.size:
        raise ValueError(f"{place.uri} has {size} bytes, and had {entry.size} when listed: ask again once it is whole")
    fsync(path)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Errors of this machine's disk, which have a number, say what to do; those of elsewhere do already."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"cannot write to the cache {folder} ({error.strerror}): {_NO_ROOM}") from error


@contextmanager
def _called_as_given(raw: Raw, here: Path) -> Iterator[None]:
    """What is wrong with a copy is said of what the user named."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if not is_uri(raw.called) or str(here) not in text:
            raise
        raise ValueError(f"{text.replace(str(here), raw.called)} (copied to {here})") from error
