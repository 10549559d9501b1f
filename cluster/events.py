"""Count and report what happens to workers: event lines, counters of the run's metrics, Prometheus metrics of Ray."""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ray.util import metrics

from metatrain.runs import JOB_ID
from metatrain.types import DRIVER_NODE_LEAVING, HEAD_SILENT, WorkerEvent

COUNTED = {
    "retries": "blocks of shards assigned again because a call was lost",
    "stragglers": "blocks of shards assigned a second time because a reply was overdue",
    "unreached": "calls whose request or reply was lost though their worker may live",
    "bytes": "bytes of replies received by the driver",
    "worker-lost": "workers replaced",
    "worker-joined": "workers that joined after the run had begun",
    "worker-silent": "times that a worker's reply was long overdue",
    "worker-back": "silent workers that replied again",
    "node-leaving": "workers whose node was about to leave",
    DRIVER_NODE_LEAVING: "times that the driver's own node was about to leave",
    HEAD_SILENT: "times that Ray's head did not answer for a while",
}
"""The counters and their meaning; exported as cluster/KIND to the run and as metatrain_KIND_total to Prometheus."""

EXPORT_S = 1.0

Metric = TypeVar("Metric", bound=Any)


def prometheus_name(kind: str) -> str:
    """Return the name of a counter in Ray's metrics; in Prometheus "ray_" comes before it."""
    return f"metatrain_{kind.replace('-', '_')}_total"


class Events:
    """Collect counts, event lines and gauges, and export them to Ray's metrics."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lines: list[WorkerEvent] = []
        self._counters = {
            kind: _make_metric(metrics.Counter, prometheus_name(kind), meaning) for kind, meaning in COUNTED.items()
        }
        self._tasks = _make_metric(
            metrics.Counter, "metatrain_tasks_total", "training tasks whose gradients were counted"
        )
        self._seconds = _make_metric(
            metrics.Counter, "metatrain_seconds_total", "seconds by part of a step, all processes together", "part"
        )
        self._workers = _make_metric(metrics.Gauge, "metatrain_workers", "workers that are given work")
        self._pace = _make_metric(
            metrics.Gauge, "metatrain_tasks_per_second", "training tasks a second, of the last step"
        )
        self._step = _make_metric(metrics.Gauge, "metatrain_step", "the outer step that was computed last")
        self._gauges: dict[metrics.Gauge, float] = {}
        self._exported: Counter[str] = Counter()
        self._new_tasks = 0
        self._new_seconds: Counter[str] = Counter()
        self._exported_at = 0.0

    def note(self, kind: str, text: str) -> None:
        """Add a line for people, and count it."""
        self._lines.append(WorkerEvent(kind, text))
        self.counts[kind] += 1

    def count(self, kind: str, by: int = 1) -> None:
        """Add `by` to a counter."""
        self.counts[kind] += by

    def add_seconds(self, parts: Mapping[str, float]) -> None:
        """Add the seconds spent, by part of a step."""
        for part, seconds in parts.items():
            self._new_seconds[part] += seconds  # type: ignore[assignment]

    def record_step(self, step: int, tasks: int, seconds: float, workers: int) -> None:
        """Record a training step that was computed in `seconds` by `workers`."""
        self._new_tasks += tasks
        self._gauges = {self._step: step, self._workers: workers, self._pace: tasks / seconds}
        self.export()

    def export(self) -> None:
        """Export to Ray's metrics, at most once a second, as exporting costs more than counting.

        Gauges are set again even if unchanged, as during an evaluation: Ray drops those that are not.
        """
        if (now := time.monotonic()) - self._exported_at < EXPORT_S:
            return
        self._exported_at = now
        for gauge, value in self._gauges.items():
            gauge.set(value)
        if self._new_tasks > 0:
            self._tasks.inc(self._new_tasks)
            self._new_tasks = 0
        for part, seconds in self._new_seconds.items():
            if seconds > 0:
                self._seconds.inc(seconds, {"part": part})
        self._new_seconds.clear()
        for kind, counter in self._counters.items():
            if (more := self.counts[kind] - self._exported[kind]) > 0:
                counter.inc(more)
        self._exported = self.counts.copy()

    def take_lines(self) -> list[WorkerEvent]:
        """Return the lines noted since the last call."""
        lines, self._lines = self._lines, []
        return lines


def _make_metric(kind: Callable[..., Metric], name: str, meaning: str, *tags: str) -> Metric:
    """Create a metric tagged with its driver, as drivers share clusters: the job's id, else host:pid."""
    metric = kind(name, meaning, tag_keys=(*tags, "driver"))
    driver = os.environ.get(JOB_ID) or f"{socket.gethostname()}:{os.getpid()}"
    metric.set_default_tags({"driver": driver})
    return metric
