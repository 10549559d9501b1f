"""Lock a run, so that it has one driver at a time."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from metatrain.errors import RunOwnedError
from metatrain.runs.run import Run
from tasks.io.files import open_unlinked, refuse_links


@contextmanager
def lock_run(
    run: Run, take_over: bool = False, guest: bool = False, heartbeat_s: float | None = None
) -> Iterator[None]:
    """Be the one driver of `run` while the block runs. Raise RunOwnedError where another driver has it.

    A guest, which only adds an evaluation or a report, never takes a run from a driver that may be alive.
    heartbeat_s: None for the run's own.

    On a disk the lock is an exclusive flock on `owner.lock`, which the kernel releases however this process ends, so
    that `take_over` is never needed; the file names the owner's pid and remains. Raise ValueError for a file system
    without flock. In S3 see `metatrain.runs.remote`. Raise ValueError for a link in the folder, too: what the driver
    writes and prunes would be elsewhere.
    """
    if run.storage is not None:
        with run.storage.lock(take_over, guest, heartbeat_s):
            yield
        return
    refuse_links(run.path)
    with _lock_file(run) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"{run.path} cannot be locked ({error.strerror}): set runs.root to a file system with flock"
                ) from error
            lock.seek(0)
            owner = _pid(lock)
            raise RunOwnedError(
                f"run {run.run_id} is being trained by another process (pid {owner}): wait for it or stop it first"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
        lock.flush()
        yield


def find_owner(run: Run) -> str | None:
    """Return who trains the run at this moment, for people; None where nobody is known to."""
    if run.storage is not None:
        return run.storage.find_owner()
    try:
        with open_unlinked(run.path / "owner.lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f"pid {_pid(lock)}"
    except (OSError, ValueError):  # never owned, on a file system without flock, or no lock of ours
        return None
    return None


def _pid(lock: IO[Any]) -> str:
    """Return the pid in a lock file that another process holds."""
    pid: bytes = lock.read(20).strip()
    return pid.decode() if pid.isdigit() else "not known yet"


def _lock_file(run: Run) -> IO[Any]:
    try:
        return open_unlinked(run.path / "owner.lock", "ab+")
    except OSError as error:
        raise ValueError(
            f"{run.path} cannot be written to ({error.strerror}): gain the right to, or copy it and resume the copy"
        ) from error
