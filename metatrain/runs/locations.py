"""Runs by where they are kept: a folder on a disk, or s3://BUCKET/FOLDER, for which a local folder stands.

That folder lies in the cache of this machine while a process works with the run, and goes with it.
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

from metatrain import runs
from metatrain.runs.run import Run
from tasks.io.remote_fs import is_uri
from tasks.store.cache import cache_root

if TYPE_CHECKING:
    from metatrain.runs.remote import Mirror

_ALIVE = ".alive"
_LEAVING: dict[Path, Callable[[], None]] = {}
"""What is to be done with each folder when this process leaves it."""
UNSENT = ".unsent"
"""In a folder that holds what the run does not."""


def new_home(root: str, name: str, config_text: str, environment: Mapping[str, Any], heartbeat_s: float) -> Run:
    """A new run under `root`. ValueError, OSError: none can be made there, with the remedy."""
    run_id = runs.fresh_id(name)
    return make_home(f"{root.rstrip('/')}/{run_id}", run_id, config_text, environment, heartbeat_s)


def make_home(
    place: str,
    run_id: str,
    config_text: str,
    environment: Mapping[str, Any],
    heartbeat_s: float,
    beside: Mapping[str, str] | None = None,
) -> Run:
    """A new run at `place` itself, where nothing may be, with the texts `beside` kept in it from the first.

    ValueError, OSError: it cannot be made there.
    """
    folder = _room() / f"{run_id}.{secrets.token_hex(3)}" if is_uri(place) else Path(place)
    run = runs.make(folder, run_id, config_text, environment)
    for name, text in (beside or {}).items():
        runs.replace_text(run.path / name, text)
    if not is_uri(place):
        return run
    try:
        mirror = _mirror(place, run.path, heartbeat_s)
        mirror.begin()
    except (ValueError, OSError):
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return Run(run.path, run.run_id, run.created, mirror)


def open_home(place: str, heartbeat_s: float = 15.0) -> Run:
    """The run at `place`. ValueError: there is none, or it is of another format, with the remedy."""
    if not is_uri(place):
        return runs.open_run(Path(place))
    folder = _room() / f"{place.rstrip('/').rpartition('/')[2]}.{secrets.token_hex(3)}"
    mirror = _mirror(place.rstrip("/"), folder, heartbeat_s)
    mirror.fetch()
    run = runs.open_run(folder)
    return Run(run.path, run.run_id, run.created, mirror)


def is_home(place: str) -> bool:
    """Whether a run is there, whole or damaged. OSError: nobody can say."""
    if not is_uri(place):
        return (Path(place) / "run.json").exists()
    from metatrain.runs.remote import is_there

    return is_there(place)


def is_search(run: Run) -> bool:
    """Whether it is a search's folder, not that of a single run."""
    begun = (run.path / "journal.jsonl").exists()
    return begun or re.search("^search:", run.config.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _room() -> Path:
    """Where folders that stand for runs lie. What processes that were killed have left there is removed."""
    room = cache_root(None) / "runs"
    try:
        room.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{room} cannot be written to ({error.strerror}): set METATRAIN_CACHE to a folder that can"
        ) from error
    for folder in room.iterdir():
        if (folder / _ALIVE).exists() and not (folder / UNSENT).exists() and (lock := _locked(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()
    return room


def _mirror(uri: str, folder: Path, heartbeat_s: float) -> "Mirror":
    from metatrain.runs.remote import Mirror  # boto3 takes its time

    mirror = Mirror(uri, folder, heartbeat_s)
    folder.mkdir(exist_ok=True)
    lock = _locked(folder)
    _LEAVING[folder] = partial(_leave, mirror, lock)
    atexit.register(_LEAVING[folder])
    return mirror


def leave(home: Run) -> None:
    """Give back the local folder that stands for a run, which a process that goes on to others need not keep."""
    leaving = _LEAVING.pop(home.path, None)
    if leaving is not None:
        atexit.unregister(leaving)
        leaving()


def _leave(mirror: "Mirror", lock: TextIO | None) -> None:
    """The folder goes, unless it holds what could not be sent."""
    if mirror.is_clean():
        shutil.rmtree(mirror.folder, ignore_errors=True)
    elif mirror.folder.is_dir():
        (mirror.folder / UNSENT).touch()
    if lock is not None:
        lock.close()


def _locked(folder: Path) -> TextIO | None:
    """A lock that says that somebody works with the folder; None where somebody else does."""
    try:
        lock = (folder / _ALIVE).open("a")
    except FileNotFoundError:  # somebody else has just removed it
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock
