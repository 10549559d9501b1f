"""Keep a run in S3: commit its local folder as a whole, with one owner at a time.

    <run>/head.json                              who owns the run, and which objects are its files
    <run>/checkpoints/00000120/state~2.14.pt     a file's content, uploaded for commit 14 of owner 2

A commit writes new files as objects of names never used before, and then replaces `head.json` on condition that it is
still the one this owner wrote last (a conditional write). So a reader meets all of a commit or nothing of it, and an
owner who was presumed dead and wakes up after another has taken over can change nothing: its next commit fails.
The head is rewritten now and then as a heartbeat; one that has not been for long may be taken over.
"""

import hashlib
import json
import math
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metatrain.errors import RunLost, RunOwnedError
from metatrain.runs.head import FORMAT, HEAD, PRIVATE, Head, RemoteFile, parse_head
from metatrain.runs.locations import UNSENT
from metatrain.runs.process_id import this_process
from metatrain.runs.s3 import PreconditionFailed, S3Folder, StorageError
from tasks.io.names import resolve_within

STALE_HEARTBEATS = 4
"""Missed heartbeats after which an owner is presumed dead."""
_THREADS = 8
_DOWNLOAD_ATTEMPTS = 3
_READ_ATTEMPTS = 30
"""How often to read again when the owner commits in between."""
_RETRY_AFTER_S = 60.0


class HeadVersion(NamedTuple):
    """A head that was read or written, and its ETag for conditional writes."""

    head: Head
    etag: str


class RemoteRun:
    """Keep the run at `uri` in step with its local folder."""

    def __init__(self, uri: str, folder: Path, heartbeat_s: float) -> None:
        self.where = uri
        self.folder = folder
        self._heartbeat_s = heartbeat_s
        self._s3 = S3Folder(uri)
        self._version: HeadVersion | None = None
        self._synced: dict[str, tuple[tuple[int, int], RemoteFile]] = {}
        self._head_lock = threading.RLock()
        self._lost: str | None = None
        self._commits = 0
        self._failed_at = self._heartbeat_at = -math.inf

    def create(self) -> None:
        """Create the run from what the folder holds. Raise StorageError where it cannot be written."""
        self._s3.check_reachable()
        self._write_head(Head(heartbeat_s=self._heartbeat_s, files=self._upload_changed(Head())), None)

    def download(self) -> None:
        """Make the folder equal to the run. Raise ValueError where there is no run."""
        self._s3.check_reachable()
        for _ in range(_READ_ATTEMPTS):
            self._version, _ = self._read_head()
            if self._download_files(self._version.head) or self._read_head()[0].etag == self._version.etag:
                return  # what is missing then is missing in the run

    @contextmanager
    def lock(self, take_over: bool, guest: bool, heartbeat_s: float | None) -> Iterator[None]:
        """Own the run while the block runs, with its files downloaded.

        Raise RunOwnedError where another owner is alive, unless `take_over` presumes it dead; a guest never does.
        """
        self._heartbeat_s = heartbeat_s or self._heartbeat_s
        self._claim(take_over, guest)
        ended = threading.Event()
        heart = threading.Thread(target=self._send_heartbeats, args=(ended,), name="heartbeat", daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            if self._lost is None:
                self._release()

    def find_owner(self) -> str | None:
        """Return who trains the run, if its heartbeat is recent."""
        version, age = self._read_head()
        owner = version.head.owner
        alive = owner is not None and not owner.is_gone() and age < STALE_HEARTBEATS * version.head.heartbeat_s
        return f"pid {owner.pid} on {owner.host}" if owner is not None and alive else None

    def commit(self) -> None:
        """Make the run equal to the folder. Raise RunLost where it has another owner; nothing was changed then.

        Raise StorageError where it failed; the next commit uploads the rest.
        """
        self.check_ownership()
        before = self._current().head.files
        try:
            files = self._upload_changed(self._current().head)  # which may take long: the heart goes on beating
            if files == before:
                return
            with self._head_lock:
                self._write_head(replace(self._current().head, files=files), self._current().etag)
        except StorageError as error:
            self._failed_at = time.monotonic()
            (self.folder / UNSENT).touch()
            raise StorageError(f"{error} (what was not sent lies in {self.folder})") from error
        (self.folder / UNSENT).unlink(missing_ok=True)
        self._remove_objects({old.key for name, old in before.items() if files.get(name) != old})

    def try_commit(self) -> None:
        """Commit, unless a commit failed within the last minute: attempts take time."""
        if time.monotonic() - self._failed_at > _RETRY_AFTER_S:
            self.commit()

    def check_ownership(self) -> None:
        """Raise RunLost where another owner was met; look again after a silence that counts as death."""
        if self._lost is not None:
            raise RunLost(self._lost)
        silent = time.monotonic() - max(self._heartbeat_at, self._failed_at)
        if self._current().head.owner is not None and silent > STALE_HEARTBEATS * self._heartbeat_s:
            with self._head_lock, suppress(StorageError):
                self._write_head(self._current().head, self._current().etag)

    def is_synced(self) -> bool:
        """Return whether the folder can be removed: the run holds it all, is another's, or never was."""
        if self._version is None or self._lost is not None:
            return True
        sent = {name: stored for name, (_, stored) in self._synced.items()}
        stamps = {name: stamp for name, (stamp, _) in self._synced.items()}
        return self._list_files() == stamps and sent == self._version.head.files

    def _current(self) -> HeadVersion:
        assert self._version is not None, "create, download or lock come first"
        return self._version

    def _claim(self, take_over: bool, guest: bool) -> None:
        version, age = self._read_head()
        owner = version.head.owner
        if owner is not None and not take_over and not owner.is_gone():
            patience = STALE_HEARTBEATS * version.head.heartbeat_s
            if guest or age < patience:
                raise RunOwnedError(
                    f"run {self.where} is being trained by another process (pid {owner.pid} on {owner.host}, heard of "
                    f"{age:.0f} s ago): wait for it or stop it; if it is dead, go on after {patience:.0f} s of "
                    "silence, or with --take-over"
                )
        epoch, claim = version.head.epoch + 1, secrets.token_hex(8)
        mine = replace(version.head, epoch=epoch, owner=this_process(), claim=claim, heartbeat_s=self._heartbeat_s)
        try:
            self._write_head(mine, version.etag)
        except RunLost as error:
            self._lost = None
            raise RunOwnedError(f"run {self.where} was just taken by another process: wait for it") from error
        self._download_files(mine)
        keys = set(self._s3.keys())
        within = tuple(key.removesuffix(HEAD) for key in keys if key.endswith(f"/{HEAD}"))  # runs of their own
        named = {stored.key for stored in mine.files.values()}
        self._remove_objects({key for key in keys - named - {HEAD} if not key.startswith(within)})

    def _release(self) -> None:
        with self._head_lock, suppress(StorageError, RunLost):  # then it is taken over when it has become stale
            self._write_head(replace(self._current().head, owner=None), self._current().etag)

    def _send_heartbeats(self, ended: threading.Event) -> None:
        """Rewrite the head at each interval; where that fails for long, the run goes on but may be taken over."""
        while not ended.wait(self._heartbeat_s):
            with self._head_lock, suppress(StorageError):
                try:
                    self._write_head(self._current().head, self._current().etag)
                except RunLost:
                    return

    def _write_head(self, head: Head, replacing: str | None) -> None:
        """Replace the head if it is still the version that we know. Raise RunLost where it is not."""
        stamped = replace(head, stamp=secrets.token_hex(8))
        body = (json.dumps({"format": FORMAT, **asdict(stamped)}, indent=1) + "\n").encode()
        try:
            etag = self._s3.put(HEAD, body, replacing)
        except PreconditionFailed as error:
            found = self._read_conflict(error)
            if found.head.stamp == stamped.stamp:
                etag = found.etag  # it was written, and only the answer was lost
            elif stamped.claim and found.head.claim == stamped.claim:
                # So was an earlier one of ours, after which we gave up: its files stand, unless these are newer.
                newer = head.files != self._current().head.files
                self._write_head(head if newer else replace(head, files=found.head.files), found.etag)
                return
            else:
                self._lost = self._lost_message(found.head)
                raise RunLost(self._lost) from error
        self._version, self._heartbeat_at = HeadVersion(stamped, etag), time.monotonic()

    def _read_conflict(self, error: PreconditionFailed) -> HeadVersion:
        try:
            return self._read_head()[0]
        except ValueError as damaged:
            self._lost = f"{damaged} (this process wrote its own there, and stops)"
            raise RunLost(self._lost) from error

    def _lost_message(self, head: Head) -> str:
        who = f"pid {head.owner.pid} on {head.owner.host}" if head.owner is not None else "another process since"
        return f"run {self.where} was taken over by {who}: this process writes nothing more to it, and stops"

    def _read_head(self) -> tuple[HeadVersion, float]:
        found = self._s3.get(HEAD)
        if found is None:
            raise ValueError(f"no run at {self.where}: it has no {HEAD}; use the URI that `metatrain train` printed")
        return HeadVersion(parse_head(found.body, self.where), found.etag), found.age

    def _list_files(self) -> dict[str, tuple[int, int]]:
        """Return the size and modification time of every file, by which a changed file is known."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in PRIVATE and not path.name.startswith("."):
                status = path.stat()
                found[name] = (status.st_size, status.st_mtime_ns)
        return found

    def _upload_changed(self, head: Head) -> dict[str, RemoteFile]:
        """Upload new and changed files; return all files of the folder."""
        self._commits += 1
        files = {}
        for name, stamp in self._list_files().items():
            known = self._synced.get(name)
            if known is None or known[0] != stamp:
                stored = RemoteFile(_object_key(name, head.epoch, self._commits), *_fingerprint(self.folder / name))
                self._s3.upload(self.folder / name, stored.key)
                self._synced[name] = known = (stamp, stored)
            files[name] = known[1]
        self._synced = {name: known for name, known in self._synced.items() if name in files}
        return files

    def _download_files(self, head: Head) -> bool:
        """Make the folder hold the files of `head` and nothing else; return whether all were there and whole.

        A damaged file is kept as it came, a missing one is skipped: what needs it reports it.
        """
        for name in self._list_files().keys() - head.files.keys():
            (self.folder / name).unlink()
            with suppress(OSError):  # other files lie there
                (self.folder / name).parent.rmdir()
        wanted = [name for name, stored in head.files.items() if not self._is_whole(name, stored)]
        with ThreadPoolExecutor(_THREADS) as several:
            whole = list(several.map(lambda name: self._download_file(name, head.files[name]), wanted))
        self._synced = {name: (stamp, head.files[name]) for name, stamp in self._list_files().items()}
        return all(whole)

    def _is_whole(self, name: str, stored: RemoteFile) -> bool:
        path = self.folder / name
        return path.is_file() and _fingerprint(path) == (stored.size, stored.sha256)

    def _download_file(self, name: str, stored: RemoteFile) -> bool:
        """Download a file; return whether it came whole."""
        path = resolve_within(self.folder, name, self.where)
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_DOWNLOAD_ATTEMPTS):
            if not self._s3.download(stored.key, path):
                return False
            if _fingerprint(path) == (stored.size, stored.sha256):
                return True
        return False

    def _remove_objects(self, keys: set[str]) -> None:
        """Remove objects that belong to no file. What fails is retried when the run is next locked."""
        with suppress(StorageError):
            for key in sorted(keys):
                self._s3.remove(key)


def head_exists(uri: str) -> bool:
    """Return whether `uri` holds a run. Raise StorageError where the storage does not answer."""
    return S3Folder(uri).get(HEAD) is not None


def _object_key(name: str, epoch: int, commit: int) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}~{epoch}.{commit}{path.suffix}"))


def _fingerprint(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
