"""What a process spent: seconds by part of the work, and the most memory it held."""

import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple


class Usage(NamedTuple):
    """Of one process since it began: seconds by name of the part, and peak resident memory in MiB."""

    pid: int
    seconds: dict[str, float]
    peak_mib: float


class Meter:
    """Adds up seconds. Read by people and benchmarks; nothing is decided by it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block counts towards `name`, whether or not it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def usage(self) -> Usage:
        """So far."""
        return Usage(os.getpid(), {name: round(value, 3) for name, value in dict(self._seconds).items()}, peak_mib())


def peak_mib() -> float:
    """The most memory this process ever held, resident, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def as_report(workers: Sequence[Usage]) -> dict[str, Any]:
    """Plain values for an executor's report: seconds by part, all workers together, and the peak of each."""
    parts = sorted({part for usage in workers for part in usage.seconds})
    return {
        "seconds": {part: round(sum(usage.seconds.get(part, 0.0) for usage in workers), 3) for part in parts},
        "peak_mib": {str(usage.pid): usage.peak_mib for usage in workers},
    }
