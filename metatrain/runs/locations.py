"""Create and open runs by location: a folder on a disk, or s3://BUCKET/FOLDER.

A run in S3 has a local folder in this machine's cache while a process works with it, which is removed afterwards.
"""

import atexit
import fcntl
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from metatrain.runs.run import Run, create_folder, new_run_id, open_folder, replace_text
from tasks.io.files import read_document_text
from tasks.io.home import expand_home, home_path
from tasks.io.remote_fs import is_uri
from tasks.store.cache import cache_root

if TYPE_CHECKING:
    from metatrain.runs.remote import RemoteRun

_IN_USE = ".alive"
_CLEANUPS: dict[Path, Callable[[], None]] = {}
"""What to do with each local folder when this process ends or releases it."""
UNSENT = ".unsent"
"""Marks a local folder that holds files which could not be uploaded."""


def create_run(
    root: str | Path,
    name: str,
    config_text: str,
    environment: Mapping[str, Any],
    heartbeat_s: float = 15.0,
    files: Mapping[str, str] | None = None,
    fill: Callable[[Run], None] | None = None,
) -> Run:
    """Create a run in a new folder under `root`, a folder or s3://…. Raise ValueError or OSError, with the remedy."""
    run_id = new_run_id(name)
    return create_run_at(
        f"{expand_home(root).rstrip('/')}/{run_id}", run_id, config_text, environment, heartbeat_s, files, fill
    )


def create_run_at(
    location: str,
    run_id: str,
    config_text: str,
    environment: Mapping[str, Any],
    heartbeat_s: float,
    files: Mapping[str, str] | None = None,
    fill: Callable[[Run], None] | None = None,
) -> Run:
    """Create a run at `location`, which must not exist, with the texts `files` in it from the first commit on.

    fill: writes what else it holds from then on.

    Raise ValueError or OSError where it cannot be created.
    """
    folder = _local_root() / f"{run_id}.{secrets.token_hex(3)}" if is_uri(location) else Path(location)
    run = create_folder(folder, run_id, config_text, environment)
    for name, text in (files or {}).items():
        replace_text(run.path / name, text)
    if fill is not None:
        fill(run)
    if not is_uri(location):
        return run
    try:
        remote = _remote_run(location, run.path, heartbeat_s)
        remote.create()
    except (ValueError, OSError):
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return Run(run.path, run.run_id, run.created, remote)


def open_run(location: str | Path, heartbeat_s: float = 15.0) -> Run:
    """Return the run at `location`. Raise ValueError where there is none or it has another format, with the remedy."""
    if isinstance(location, Path) or not is_uri(location):
        return open_folder(home_path(location))
    uri = location.rstrip("/")
    folder = _local_root() / f"{uri.rpartition('/')[2]}.{secrets.token_hex(3)}"
    remote = _remote_run(uri, folder, heartbeat_s)
    remote.download()
    run = open_folder(folder)
    return Run(run.path, run.run_id, run.created, remote)


def run_exists(location: str) -> bool:
    """Return whether a run is there, whole or damaged. Raise OSError where the storage does not answer."""
    if not is_uri(location):
        return (home_path(location) / "run.json").exists()
    from metatrain.runs.remote import head_exists

    return head_exists(location)


def is_search(run: Run) -> bool:
    """Return whether this is the folder of a search, not of a single run."""
    begun = (run.path / "journal.jsonl").exists()
    return begun or re.search("^search:", read_document_text(run.config), re.MULTILINE) is not None


def release_run(run: Run) -> None:
    """Remove the local folder of a run in S3 before this process ends."""
    cleanup = _CLEANUPS.pop(run.path, None)
    if cleanup is not None:
        atexit.unregister(cleanup)
        cleanup()


def _local_root() -> Path:
    """Return the folder of local copies, after removing those that killed processes have left there."""
    root = cache_root(None) / "runs"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{root} cannot be written to ({error.strerror}): set METATRAIN_CACHE to a folder that can"
        ) from error
    for folder in root.iterdir():
        if (folder / _IN_USE).exists() and not (folder / UNSENT).exists() and (lock := _try_lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()
    return root


def _remote_run(uri: str, folder: Path, heartbeat_s: float) -> "RemoteRun":
    from metatrain.runs.remote import RemoteRun  # imports boto3, which takes a second

    remote = RemoteRun(uri, folder, heartbeat_s)
    folder.mkdir(exist_ok=True)
    lock = _try_lock(folder)
    _CLEANUPS[folder] = partial(_clean_up, remote.is_synced, folder, lock)
    atexit.register(_CLEANUPS[folder])
    return remote


def _clean_up(is_synced: Callable[[], bool], folder: Path, lock: TextIO | None) -> None:
    """Remove the local folder, or mark it where it holds what could not be uploaded."""
    if is_synced():
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_dir():
        (folder / UNSENT).touch()
    if lock is not None:
        lock.close()


def _try_lock(folder: Path) -> TextIO | None:
    """Return a lock that marks the folder as in use; None where another process holds it."""
    try:
        lock = (folder / _IN_USE).open("a")
    except FileNotFoundError:  # another process has just removed it
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock
