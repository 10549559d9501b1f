"""A run's folder in object storage: a local folder stands for it, and is committed as a whole.

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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from metatrain.errors import RunLost, RunOwnedError
from metatrain.runs.locations import UNSENT
from metatrain.runs.process_id import Process, this_process
from metatrain.runs.s3 import Bucket, Outdated, StorageError

HEAD = "head.json"
FORMAT = 1
STALE = 4
"""After so many missed heartbeats an owner is presumed dead."""
_TOGETHER = 8
_TRIES = 3
_READS = 30
"""How often a reader begins again who was overtaken by an owner that commits without a pause."""
_PAUSE_S = 60.0
_PRIVATE = ("owner.lock",)


@dataclass(frozen=True)
class Stored:
    """A file's content: the object it is, its size and checksum."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Head:
    """What head.json says. `epoch` counts owners, `claim` is each one's own, `stamp` new in every version."""

    epoch: int = 0
    owner: Process | None = None
    heartbeat_s: float = 15.0
    claim: str = ""
    stamp: str = ""
    files: dict[str, Stored] = field(default_factory=dict)


class Version(NamedTuple):
    """A head that was read or written, and the tag a conditional write names it by."""

    head: Head
    etag: str


class Mirror:
    """The run at `uri`, and the local folder that stands for it."""

    def __init__(self, uri: str, folder: Path, heartbeat_s: float) -> None:
        self.where = uri
        self.folder = folder
        self._heartbeat_s = heartbeat_s
        self._bucket = Bucket(uri)
        self._version: Version | None = None
        self._sent: dict[str, tuple[tuple[int, int], Stored]] = {}
        self._changing = threading.RLock()
        self._lost: str | None = None
        self._commits = 0
        self._failed = self._renewed = -math.inf

    def begin(self) -> None:
        """A new run: what the folder holds becomes its first files. StorageError: it cannot be written to."""
        self._bucket.reachable()
        self._write(Head(heartbeat_s=self._heartbeat_s, files=self._uploaded(Head())), None)

    def fetch(self) -> None:
        """Makes the folder what the run is now. ValueError: there is no run."""
        self._bucket.reachable()
        for _ in range(_READS):
            self._version, _ = self._read()
            if self._fetch_files(self._version.head) or self._read()[0].etag == self._version.etag:
                return  # what is missing then is missing in the run

    @contextmanager
    def owned(self, take_over: bool, guest: bool, heartbeat_s: float | None) -> Iterator[None]:
        """Be the run's one owner while the block runs, with its files as they are now.

        RunOwnedError: another owner is alive, and `take_over` does not say to presume it dead. A guest never does.
        """
        self._heartbeat_s = heartbeat_s or self._heartbeat_s
        self._claim(take_over, guest)
        ended = threading.Event()
        heart = threading.Thread(target=self._beat, args=(ended,), name="heartbeat", daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            if self._lost is None:
                self._release()

    def owner(self) -> str | None:
        """Who trains the run, if that has been heard of lately."""
        version, age = self._read()
        owner = version.head.owner
        alive = owner is not None and not owner.is_gone() and age < STALE * version.head.heartbeat_s
        return f"pid {owner.pid} on {owner.host}" if owner is not None and alive else None

    def commit(self) -> None:
        """What the folder holds now is what the run is. RunLost: it has another owner, and nothing was changed.

        StorageError: it could not be done; the next commit sends what this one could not.
        """
        self.check()
        before = self._held().head.files
        try:
            files = self._uploaded(self._held().head)  # which may take long: the heart goes on beating
            if files == before:
                return
            with self._changing:
                self._write(replace(self._held().head, files=files), self._held().etag)
        except StorageError as error:
            self._failed = time.monotonic()
            (self.folder / UNSENT).touch()
            raise StorageError(f"{error} (what was not sent lies in {self.folder})") from error
        (self.folder / UNSENT).unlink(missing_ok=True)
        self._sweep({old.key for name, old in before.items() if files.get(name) != old})

    def offer(self) -> None:
        """The same, but not within a minute of one that could not be done: attempts take time."""
        if time.monotonic() - self._failed > _PAUSE_S:
            self.commit()

    def check(self) -> None:
        """RunLost: another owner was met. One who has been silent for long enough to be presumed dead looks again."""
        if self._lost is not None:
            raise RunLost(self._lost)
        silent = time.monotonic() - max(self._renewed, self._failed)
        if self._held().head.owner is not None and silent > STALE * self._heartbeat_s:
            with self._changing, suppress(StorageError):
                self._write(self._held().head, self._held().etag)

    def is_clean(self) -> bool:
        """Whether nothing would be lost with the folder: the run holds it all, or is another's, or never was."""
        if self._version is None or self._lost is not None:
            return True
        sent = {name: stored for name, (_, stored) in self._sent.items()}
        stamps = {name: stamp for name, (stamp, _) in self._sent.items()}
        return self._listing() == stamps and sent == self._version.head.files

    def _held(self) -> Version:
        assert self._version is not None, "fetch, begin or owned come first"
        return self._version

    def _claim(self, take_over: bool, guest: bool) -> None:
        version, age = self._read()
        owner = version.head.owner
        if owner is not None and not take_over and not owner.is_gone():
            patience = STALE * version.head.heartbeat_s
            if guest or age < patience:
                raise RunOwnedError(
                    f"run {self.where} is being trained by another process (pid {owner.pid} on {owner.host}, heard of "
                    f"{age:.0f} s ago): wait for it or stop it; if it is dead, go on after {patience:.0f} s of "
                    "silence, or with --take-over"
                )
        epoch, claim = version.head.epoch + 1, secrets.token_hex(8)
        mine = replace(version.head, epoch=epoch, owner=this_process(), claim=claim, heartbeat_s=self._heartbeat_s)
        try:
            self._write(mine, version.etag)
        except RunLost as error:
            self._lost = None
            raise RunOwnedError(f"run {self.where} was just taken by another process: wait for it") from error
        self._fetch_files(mine)
        keys = set(self._bucket.keys())
        within = tuple(key.removesuffix(HEAD) for key in keys if key.endswith(f"/{HEAD}"))  # runs of their own
        named = {stored.key for stored in mine.files.values()}
        self._sweep({key for key in keys - named - {HEAD} if not key.startswith(within)})

    def _release(self) -> None:
        with self._changing, suppress(StorageError, RunLost):  # then it is taken over when it has become stale
            self._write(replace(self._held().head, owner=None), self._held().etag)

    def _beat(self, ended: threading.Event) -> None:
        """Rewrites the head every so often; an owner who cannot for a while goes on, and may be taken over."""
        while not ended.wait(self._heartbeat_s):
            with self._changing, suppress(StorageError):
                try:
                    self._write(self._held().head, self._held().etag)
                except RunLost:
                    return

    def _write(self, head: Head, replacing: str | None) -> None:
        """Replaces the head, if it is still what we know. RunLost: it is not."""
        stamped = replace(head, stamp=secrets.token_hex(8))
        body = (json.dumps({"format": FORMAT, **asdict(stamped)}, indent=1) + "\n").encode()
        try:
            etag = self._bucket.put(HEAD, body, replacing)
        except Outdated as error:
            found = self._found_instead(error)
            if found.head.stamp == stamped.stamp:
                etag = found.etag  # it was written, and only the answer was lost
            elif stamped.claim and found.head.claim == stamped.claim:
                # So was an earlier one of ours, after which we gave up: its files stand, unless these are newer.
                newer = head.files != self._held().head.files
                self._write(head if newer else replace(head, files=found.head.files), found.etag)
                return
            else:
                self._lost = self._told_of(found.head)
                raise RunLost(self._lost) from error
        self._version, self._renewed = Version(stamped, etag), time.monotonic()

    def _found_instead(self, error: Outdated) -> Version:
        try:
            return self._read()[0]
        except ValueError as damaged:
            self._lost = f"{damaged} (this process wrote its own there, and stops)"
            raise RunLost(self._lost) from error

    def _told_of(self, head: Head) -> str:
        who = f"pid {head.owner.pid} on {head.owner.host}" if head.owner is not None else "another process since"
        return f"run {self.where} was taken over by {who}: this process writes nothing more to it, and stops"

    def _read(self) -> tuple[Version, float]:
        found = self._bucket.get(HEAD)
        if found is None:
            raise ValueError(f"no run at {self.where}: it holds no {HEAD}; give what `metatrain train` printed")
        return Version(_parsed(found.body, self.where), found.etag), found.age

    def _listing(self) -> dict[str, tuple[int, int]]:
        """Every file of the folder: its size and when it was written, which tell whether it is another."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in _PRIVATE and not path.name.startswith("."):
                status = path.stat()
                found[name] = (status.st_size, status.st_mtime_ns)
        return found

    def _uploaded(self, head: Head) -> dict[str, Stored]:
        """The files of the folder as objects, those that are new or have changed uploaded."""
        self._commits += 1
        files = {}
        for name, stamp in self._listing().items():
            known = self._sent.get(name)
            if known is None or known[0] != stamp:
                stored = Stored(_key(name, head.epoch, self._commits), *_fingerprint(self.folder / name))
                self._bucket.upload(self.folder / name, stored.key)
                self._sent[name] = known = (stamp, stored)
            files[name] = known[1]
        self._sent = {name: known for name, known in self._sent.items() if name in files}
        return files

    def _fetch_files(self, head: Head) -> bool:
        """Makes the folder hold the files of `head` and nothing else; whether all were there and whole.

        One that is damaged comes as it is, one that is missing does not: who needs it says so.
        """
        for name in self._listing().keys() - head.files.keys():
            (self.folder / name).unlink()
            with suppress(OSError):  # other files lie there
                (self.folder / name).parent.rmdir()
        wanted = [name for name, stored in head.files.items() if not self._has(name, stored)]
        with ThreadPoolExecutor(_TOGETHER) as several:
            whole = list(several.map(lambda name: self._download(name, head.files[name]), wanted))
        self._sent = {name: (stamp, head.files[name]) for name, stamp in self._listing().items()}
        return all(whole)

    def _has(self, name: str, stored: Stored) -> bool:
        path = self.folder / name
        return path.is_file() and _fingerprint(path) == (stored.size, stored.sha256)

    def _download(self, name: str, stored: Stored) -> bool:
        """Whether the file came whole."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            if not self._bucket.download(stored.key, path):
                return False
            if _fingerprint(path) == (stored.size, stored.sha256):
                return True
        return False

    def _sweep(self, keys: set[str]) -> None:
        """Removes objects that are no file's any more. What cannot be removed now is when the run is next taken."""
        with suppress(StorageError):
            for key in sorted(keys):
                self._bucket.remove(key)


def is_there(uri: str) -> bool:
    """Whether a run was begun at `uri`. StorageError: the storage does not answer."""
    return Bucket(uri).get(HEAD) is not None


def _parsed(body: bytes, where: str) -> Head:
    try:
        plain: dict[str, Any] = json.loads(body)
        if plain.pop("format") != FORMAT:
            raise ValueError(f"{where} has another format than {FORMAT}: use the version of metatrain that wrote it")
        plain["files"] = {name: Stored(**stored) for name, stored in plain["files"].items()}
        plain["owner"] = Process(**plain["owner"]) if plain["owner"] else None
        return Head(**plain)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where} is not a run: its {HEAD} is damaged; restore that object or train anew") from error


def _key(name: str, epoch: int, commit: int) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}~{epoch}.{commit}{path.suffix}"))


def _fingerprint(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
