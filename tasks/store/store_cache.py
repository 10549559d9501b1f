"""Build the store of raw files, or fetch it: from this machine's cache, a cache that machines share, or a URI's files.

A store is built once and kept in this machine's cache and, if `tasks.cache` is a URI, in that shared cache as well.
Raw files behind a URI are first copied to the machine that builds.

    CACHE/NAME/KEY.arrow    a store
    CACHE/NAME/STAMP.key    a note: the content key that these files and settings give; below it, as JSON, `Findings`
    CACHE/raw/STAMP/        copies of raw files behind a URI, in this machine's cache only
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tasks.io.atomic import atomic_write, fsync
from tasks.io.home import home_path
from tasks.io.names import resolve_within
from tasks.io.remote_fs import (
    FileEntry,
    RemotePath,
    check_reachable,
    child,
    download,
    file_exists,
    is_uri,
    list_files,
    parse_uri,
    upload,
)
from tasks.store.cache import build_once, cache_root, digest, is_hidden, lock_file, read_key, write_key
from tasks.store.store import FORMAT_VERSION, DamagedStoreError, Store, open_store

_CONNECTIONS = 16
"""Raw files copied at a time: small ones are bound by latency."""
_DOWNLOADS = 3
"""Attempts for a store that arrives damaged, before the shared copy is reported as damaged."""


class RawFiles(NamedTuple):
    """Raw files, on this machine or behind a URI."""

    location: str
    """The path or URI in the configuration, for messages."""
    listing: Any
    """JSON that changes when a file behind a URI changes; None for files of this machine."""
    localize: Callable[[], Path]
    """Return the folder or file on this machine that holds them, copied first if needed."""


class Findings(NamedTuple):
    """What was found in raw files beside the images of a store."""

    classes: tuple[str, ...] = ()
    """The name of each class of the store as lists of classes have it; empty for the store's own names."""
    notes: tuple[str, ...] = ()
    """What was left out or decided, and why; a line each."""


class BuildPlan(NamedTuple):
    """How to make a store: its content key, the function that writes it, atomically, to a path, and the findings."""

    key: str
    build: Callable[[Path], None]
    findings: Findings = Findings()


class LoadedStore(NamedTuple):
    """An open store, and what was found in its raw files."""

    store: Store
    findings: Findings


def load_or_build(
    name: str, raw: RawFiles, settings: Any, cache: str | None, plan: Callable[[Path], BuildPlan]
) -> LoadedStore:
    """Open the store that the source `name` makes of raw files, from the nearest cache that has it, or build it.

    settings: JSON of everything besides the files that decides the store's content. cache: the setting `tasks.cache`.

    The content key requires the files. So it is noted under name, settings and the listing of the files (sizes and
    times), in both caches. Once one machine has built a store, another requests one listing, one note and one store,
    and no raw file.
    """
    local, shared = cache_root(cache), parse_uri(cache) if cache and is_uri(cache) else None
    note = _KeyNote(local, shared, name, digest([settings, FORMAT_VERSION, raw.location, raw.listing]))
    if raw.listing is not None:
        found = _find_noted_store(note)
        if found is not None:
            return LoadedStore(open_store(found[0]), found[1])
        if shared is not None:
            check_reachable(shared)
    root = raw.localize()
    with _name_original_location(raw, root):
        recipe = plan(root)
        path = build_once(local, name, recipe.key, partial(_download_or_build, shared, name, recipe))
    if shared is not None:
        _upload_store(path, child(shared, f"{name}/{path.name}"))
    if raw.listing is not None:
        _write_note(note, f"{recipe.key}\n{json.dumps(recipe.findings)}")
    return LoadedStore(open_store(path), recipe.findings)


def locate_raw_files(root: str, cache: str | None, select: Callable[[Sequence[str]], Iterable[str]]) -> RawFiles:
    """Return the raw files at a path or a URI. select: from the names of all files there to those worth copying."""
    if not is_uri(root):
        return RawFiles(root, None, lambda: home_path(root))
    path = parse_uri(root)
    try:
        folder, entries = list_files(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path.uri} does not exist, or is empty: set tasks.root to where the files are") from error
    single = folder.uri != path.uri
    if not single:
        wanted = set(select([entry.name for entry in entries if not is_hidden(entry.name)]))
        entries = [entry for entry in entries if entry.name in wanted]

    def localize() -> Path:
        copy = _copy_raw_files(cache_root(cache), folder, entries)
        return copy / entries[0].name if single else copy

    return RawFiles(path.uri, entries, localize)


class _KeyNote(NamedTuple):
    """Where a key is noted: on this machine, and, unless shared is None, in the shared cache."""

    local: Path
    shared: RemotePath | None
    name: str
    stamp: str

    @property
    def local_path(self) -> Path:
        # A new shared cache gives a new name: an old local note does not mean that the shared cache has the store.
        stamp = self.stamp if self.shared is None else digest([self.stamp, self.shared.uri])
        return self.local / self.name / f"{stamp}.key"

    @property
    def shared_path(self) -> RemotePath | None:
        return self.shared and child(self.shared, f"{self.name}/{self.stamp}.key")


def _find_noted_store(note: _KeyNote) -> tuple[Path, Findings] | None:
    """Return the store whose key is noted, downloaded if needed, and the noted findings; None if either is missing."""
    if read_key(note.local_path) is None and note.shared_path is not None:
        with suppress(FileNotFoundError), _explain_disk_errors(note.local), atomic_write(note.local_path) as temporary:
            download(note.shared_path, temporary)
    key = read_key(note.local_path)
    if key is None:
        return None
    with suppress(FileNotFoundError):
        path = build_once(note.local, note.name, key, partial(_download_store, note.shared, note.name))
        return path, _read_findings(note.local_path)
    return None


def _read_findings(note: Path) -> Findings:
    """Return the findings below the key of a note; none if it is of an earlier version, or damaged."""
    try:
        classes, notes = json.loads(note.read_text().partition("\n")[2] or "[[], []]")
        if all(isinstance(text, str) for text in (*classes, *notes)):
            return Findings(tuple(classes), tuple(notes))
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    return Findings()


def _write_note(note: _KeyNote, text: str) -> None:
    write_key(note.local_path, text)
    if note.shared_path is not None:
        upload(note.local_path, note.shared_path)


def _download_or_build(shared: RemotePath | None, name: str, recipe: BuildPlan, path: Path) -> None:
    try:
        _download_store(shared, name, path)
    except FileNotFoundError:
        if shared is not None:
            check_reachable(shared)
        recipe.build(path)


def _download_store(shared: RemotePath | None, name: str, path: Path) -> None:
    """Download a store to `path` and verify it. FileNotFoundError: no shared cache has it."""
    if shared is None:
        raise FileNotFoundError("there is no shared cache")
    source = child(shared, f"{name}/{path.name}")
    for attempt in range(_DOWNLOADS):
        try:
            with _explain_disk_errors(path.parent), atomic_write(path) as temporary:
                download(source, temporary)
                open_store(temporary)
            return
        except DamagedStoreError as error:
            if attempt == _DOWNLOADS - 1:
                remedy = "delete it there, and run `metatrain data prepare NAME` where the raw files are"
                raise ValueError(f"{source.uri} is damaged ({error.args[1]}): {remedy}") from error


def _upload_store(path: Path, target: RemotePath) -> None:
    with lock_file(path.with_suffix(".lock")):
        if not file_exists(target):
            upload(path, target)


def _copy_raw_files(root: Path, folder: RemotePath, entries: Sequence[FileEntry]) -> Path:
    """Return the folder on this machine with a copy of the files. Of processes that ask together, one copies."""
    copy = root / "raw" / digest([folder.uri, entries])
    partial_copy = copy.with_name(f".{copy.name}")
    with lock_file(copy.with_name(f"{copy.name}.lock")):
        if not copy.exists():
            shutil.rmtree(partial_copy, ignore_errors=True)  # left by a process that died
            with _explain_disk_errors(copy.parent):
                partial_copy.mkdir()
                pool = ThreadPoolExecutor(_CONNECTIONS)
                try:
                    list(pool.map(lambda entry: _copy_file(folder, entry, partial_copy), entries))
                finally:
                    pool.shutdown(cancel_futures=True)
                partial_copy.rename(copy)
                fsync(copy.parent)
    return copy


def _copy_file(folder: RemotePath, entry: FileEntry, target: Path) -> None:
    source = child(folder, entry.name)
    path = resolve_within(target, entry.name, folder.uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = download(source, path)
    if size != entry.size:
        raise ValueError(f"{source.uri} has {size} bytes, and had {entry.size} when listed: retry once it is complete")
    fsync(path)


@contextmanager
def _explain_disk_errors(folder: Path) -> Iterator[None]:
    """Add the remedy to errors of this machine's disk, which have an errno; those of remote files have a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        remedy = "free some space, or set METATRAIN_CACHE to a folder you may write to"
        raise OSError(f"cannot write to the cache {folder} ({error.strerror}): {remedy}") from error


@contextmanager
def _name_original_location(raw: RawFiles, copy: Path) -> Iterator[None]:
    """Name the configured URI in messages about its copy."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if not is_uri(raw.location) or str(copy) not in text:
            raise
        raise ValueError(f"{text.replace(str(copy), raw.location)} (copied to {copy})") from error
