"""Processes by what tells them apart wherever they run, so that one can be known to be gone."""

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
        """Whether it ran here and does no more. False where that cannot be told: elsewhere, or not on Linux."""
        here = this_process()
        return bool(self.machine) and self.machine == here.machine and _started(self.pid) != self.started


@cache
def this_process() -> Process:
    """This one. (After a fork it is still the parent.)"""
    return Process(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()) or "")


def _machine() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _started(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's own count; None where there is none, or only its shell."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None
