"""Measure whole commands: seconds and peak memory of `metatrain …` in a process of its own; and memory of processes."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MOST_S = 600.0
_CALLER = """
import json, resource, subprocess, sys, time
began = time.monotonic()
code = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
found = {"seconds": time.monotonic() - began, "cpu": used.ru_utime + used.ru_stime, "kib": used.ru_maxrss}
open(sys.argv[1], "w").write(json.dumps({"code": code} | found))
"""
"""A small caller: on Linux the peak of a command counts the memory of the process that started it."""


class Measured(NamedTuple):
    """Seconds by the clock and of the processor, and peak memory in MiB, of a command and its children."""

    seconds: float
    cpu: float
    mib: float


def measure_command(words: Sequence[str], folder: Path) -> Measured:
    """Run `metatrain WORDS` in `folder`, for ten minutes at most. RuntimeError: it fails."""
    note = folder / ".measured.json"
    command = [sys.executable, "-I", "-c", _CALLER, str(note), sys.executable, "-m", "metatrain", *words]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_MOST_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"metatrain {words[0]}: more than {_MOST_S:g} s") from error
    found = json.loads(note.read_text())
    note.unlink()
    if found["code"]:
        raise RuntimeError(f"metatrain {' '.join(words)[:200]}: code {found['code']}: {done.stderr[-1000:]}")
    return Measured(found["seconds"], found["cpu"], found["kib"] / 1024)


def resident_mib(pid: int | None = None) -> float:
    """Return the memory of a process (this one by default) that is in RAM, pages shared with others included."""
    return int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1]) * _PAGE / 2**20


def private_mib(pid: int | None = None) -> float:
    """Return the memory of a process in RAM that belongs to no file: mapped stores and libraries are left out."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None, "Linux 4.5 or later tells it"
    return int(found[1]) / 1024


class Timer:
    """Measure seconds and the growth of this process's memory over a block."""

    def __enter__(self) -> "Timer":
        self._mib, self._began = private_mib(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.mib = time.perf_counter() - self._began, private_mib() - self._mib
