"""Record metrics and events as JSON lines; combine recorders.

A line of metrics.jsonl belongs to one outer step and has one of two forms, with "time" in unix seconds:

    {"step": 120, "time": 1770000000.1, "train/loss": 0.31, "train/accuracy": 0.89}
    {"step": 120, "time": 1770000000.2, "event": "checkpoint", "text": "saved 00000120"}

A value that is not finite is null, since JSON has no word for it.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from metatrain.types import Recorder, RunStatus
from tasks.io.atomic import atomic_write, fsync
from tasks.io.files import open_plain, open_unlinked
from tasks.io.json_documents import MOST
from tasks.io.json_lines import bounded_lines, parse_json_lines

PROGRESS = "progress.json"
"""The file beside metrics.jsonl that tells how far a validation or test is while it lasts."""
_TELL_S = 3.0
_LATEST = 1e11
"""Unix seconds that no clock shows before the year 5000."""


class JsonlRecorder:
    """Append to one file, which a killed process may have left with half a line at its end.

    A line is handed to the system when it is recorded, and is on the disk after `flush`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: dict[str, int] = {}
        self._file: IO[Any] | None = None
        self._told = self._stage_began = time.monotonic()

    def start(self, step: int, total: int) -> None:
        """Cut the file back to `step`: later lines will be recorded again. ValueError: a line within is not JSON."""
        self._last = _cut_back(self.path, step) if self.path.exists() else {}
        self._file = open_unlinked(self.path, "a")
        fsync(self.path.parent)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line with the metrics that have no value at this step or a later one yet, if any."""
        fresh = new_points(self._last, step, metrics)
        if fresh:
            finite = {key: value if math.isfinite(value) else None for key, value in fresh.items()}
            self._write({"step": step, "time": time.time(), **finite})

    def progress(self, stage: str, done: int, total: int) -> None:
        """Write progress.json beside the file every few seconds, for `metatrain status`; remove it at the end."""
        now = time.monotonic()
        if done == 0:
            self._stage_began = now
        left = (now - self._stage_began) * (total - done) / done if done else None
        with suppress(OSError):  # a full disk will be told of by what is to be kept
            if done >= total:
                self._drop_progress()
            elif now - self._told >= _TELL_S:
                self._told = now
                with atomic_write(self.path.with_name(PROGRESS)) as temporary:
                    plain = {"stage": stage, "done": done, "total": total, "seconds_left": left}
                    temporary.write_text(json.dumps(plain), encoding="utf-8")

    def artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing: the run folder already holds the file."""

    def event(self, step: int, kind: str, text: str) -> None:
        """Write one line with the keys "event" and "text"."""
        self._write({"step": step, "time": time.time(), "event": kind, "text": text})

    def flush(self) -> None:
        """Write everything to disk (fsync)."""
        assert self._file is not None, "start() opens the file"
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self, status: RunStatus) -> None:
        """Flush and close the file, if it was opened."""
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None
            self._drop_progress()

    def _drop_progress(self) -> None:
        self.path.with_name(PROGRESS).unlink(missing_ok=True)

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None, "start() opens the file"
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class CompositeRecorder:
    """Pass every call on to `recorders`, in order; without any, record nothing. Close all, even where one fails."""

    def __init__(self, recorders: Sequence[Recorder] = ()) -> None:
        self.recorders = tuple(recorders)

    def start(self, step: int, total: int) -> None:
        """Start each."""
        for recorder in self.recorders:
            recorder.start(step, total)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record with each."""
        for recorder in self.recorders:
            recorder.record(step, metrics)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show with each."""
        for recorder in self.recorders:
            recorder.progress(stage, done, total)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Hand the file to each."""
        for recorder in self.recorders:
            recorder.artifact(path, folder)

    def event(self, step: int, kind: str, text: str) -> None:
        """Tell each."""
        for recorder in self.recorders:
            recorder.event(step, kind, text)

    def flush(self) -> None:
        """Flush each."""
        for recorder in self.recorders:
            recorder.flush()

    def close(self, status: RunStatus) -> None:
        """Close each, the first one last, since others may have an event for it; then raise an error of any."""
        with ExitStack() as stack:
            for recorder in self.recorders:
                stack.callback(recorder.close, status)


def new_points(last: MutableMapping[str, int], step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are not replays, and update `last`, the last recorded step of each key."""
    fresh = {key: float(value) for key, value in metrics.items() if step > last.get(key, -1)}
    last.update(dict.fromkeys(fresh, step))
    return fresh


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a metrics.jsonl that may still be written to, except a torn last line.

    ValueError: a line before the last is of neither form.
    """
    return (line for _, line in _read(path))


def _read(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with open_plain(path) as file:
        yield from parse_json_lines(bounded_lines(file), str(path), "remove that line and try again", _is_line)


def _is_line(line: dict[str, Any]) -> bool:
    """Return whether an object has one of the two forms of a line."""
    step, moment = line.get("step"), line.get("time", 0.0)
    if type(step) is not int or not (0 <= step <= MOST and _is_number(moment) and 0 <= moment < _LATEST):
        return False
    if "event" in line:
        return isinstance(line["event"], str) and isinstance(line.get("text", ""), str)
    return all(value is None or _is_number(value) for value in line.values())


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= MOST
    return isinstance(value, float) and math.isfinite(value)


def _cut_back(path: Path, step: int) -> dict[str, int]:
    """Drop lines after `step` and a torn one from `path`, atomically; return the last step kept of each key."""
    last: dict[str, int] = {}
    size = 0
    for raw, line in _read(path):
        if line["step"] <= step:
            size += len(raw)
            last.update(dict.fromkeys(line.keys() - {"step", "time", "event", "text"}, line["step"]))
    if size < path.stat().st_size:
        with atomic_write(path) as temporary, temporary.open("wb") as kept:
            for raw, line in _read(path):
                if line["step"] <= step:
                    kept.write(raw)
    return last
