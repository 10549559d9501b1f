"""Identify a process across machines and restarts, so that a dead owner is known to be dead."""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process. `machine` differs between machines, their starts, and containers; `started` between equal pids."""

    host: str
    machine: str
    pid: int
    started: str

    def is_gone(self) -> bool:
        """Return whether it ran on this machine and has ended; False elsewhere, where nothing is known of it."""
        here = this_process()
        return bool(self.machine) and self.machine == here.machine and _start_time(self.pid) != self.started


@cache
def this_process() -> Process:
    """Return this process (after a fork, still the parent)."""
    return Process(socket.gethostname(), _machine_id(), os.getpid(), _start_time(os.getpid()) or "")


def _machine_id() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _start_time(pid: int) -> str | None:
    """Return the start time of a local process, in clock ticks since boot; None where it is gone or a zombie."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None
