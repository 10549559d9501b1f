"""Measure a process: seconds by part of its work, and peak memory."""

import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple


class Usage(NamedTuple):
    """What one process has used since its start: seconds by part, and peak resident memory in MiB."""

    pid: int
    seconds: dict[str, float]
    peak_mib: float


class Meter:
    """Add up seconds by part. For people and benchmarks: no decision depends on them."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of a block towards `name`, whether or not it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def usage(self) -> Usage:
        """Return the usage so far."""
        return Usage(os.getpid(), {name: round(value, 3) for name, value in dict(self._seconds).items()}, peak_mib())


def peak_mib() -> float:
    """Return the peak resident memory of this process, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def as_report(workers: Sequence[Usage]) -> dict[str, Any]:
    """Return plain values for an executor's report: seconds by part over all workers, and each one's peak memory."""
    parts = sorted({part for usage in workers for part in usage.seconds})
    return {
        "seconds": {part: round(sum(usage.seconds.get(part, 0.0) for usage in workers), 3) for part in parts},
        "peak_mib": {str(usage.pid): usage.peak_mib for usage in workers},
    }
