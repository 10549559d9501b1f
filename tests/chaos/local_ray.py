"""Find the processes of the Ray cluster that a driver has started on this machine."""

import os
from contextlib import suppress
from pathlib import Path


def session(driver: int) -> int | None:
    """Return the process that holds the cluster of `driver`, which is also their session; None without one."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == driver and b"local_head.py" in (entry / "cmdline").read_bytes():
                return int(entry.name)
    return None


def members(leader: int) -> list[tuple[int, str]]:
    """Return the processes of a session and their names."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(entry.name)) == leader:
                found.append((int(entry.name), (entry / "comm").read_text().strip()))
    return found


def pids(driver: int) -> list[tuple[int, str]]:
    """Return the processes of the cluster of `driver`, and their names."""
    leader = session(driver)
    return [] if leader is None else members(leader)
