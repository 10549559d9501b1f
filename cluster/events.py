"""What happens to the workers of a run, told three ways: a line for people, a number in the run's own metrics, and
Ray's metrics, which its nodes export to Prometheus.
"""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ray.util import metrics

from metatrain.runs import JOB_ID
from metatrain.types import DRIVER_NODE_LEAVING, WorkerEvent

COUNTED = {
    "retries": "blocks of shards handed out again because a call came to nothing",
    "stragglers": "blocks of shards handed out a second time because an answer was overdue",
    "unreached": "calls whose request or answer was lost though their worker may live",
    "bytes": "bytes of answers that came to the driver",
    "worker-lost": "workers replaced",
    "worker-joined": "workers that came after the run had begun",
    "worker-silent": "times that a worker's answer was overdue for long",
    "worker-back": "silent workers that answered again",
    "node-leaving": "workers whose node was about to leave",
    DRIVER_NODE_LEAVING: "times that the driver's own node was about to leave",
}
"""What is counted, under the run's "cluster/…" and as metatrain_…_total, and what it means."""

EXPORT_S = 1.0

Metric = TypeVar("Metric", bound=Any)


def exported(kind: str) -> str:
    """The name of a counter; in Prometheus "ray_" comes before it."""
    return f"metatrain_{kind.replace('-', '_')}_total"


def _named(kind: Callable[..., Metric], name: str, meaning: str, *tags: str) -> Metric:
    """A metric that says whose it is, since drivers share clusters: the job's id, or host:pid outside of one."""
    metric = kind(name, meaning, tag_keys=(*tags, "driver"))
    driver = os.environ.get(JOB_ID) or f"{socket.gethostname()}:{os.getpid()}"
    metric.set_default_tags({"driver": driver})
    return metric


class Events:
    """Counts and lines, and where they are told."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._notes: list[WorkerEvent] = []
        self._counters = {kind: _named(metrics.Counter, exported(kind), meaning) for kind, meaning in COUNTED.items()}
        self._tasks = _named(metrics.Counter, "metatrain_tasks_total", "training tasks whose gradients were counted")
        self._seconds = _named(
            metrics.Counter, "metatrain_seconds_total", "seconds by part of a step, all processes together", "part"
        )
        self._workers = _named(metrics.Gauge, "metatrain_workers", "workers that are given work")
        self._pace = _named(metrics.Gauge, "metatrain_tasks_per_second", "training tasks a second, of the last step")
        self._step = _named(metrics.Gauge, "metatrain_step", "the outer step that was computed last")
        self._now: dict[metrics.Gauge, float] = {}
        self._exported: Counter[str] = Counter()
        self._tasks_since = 0
        self._parts_since: Counter[str] = Counter()
        self._exported_at = 0.0

    def note(self, kind: str, text: str) -> None:
        """A line for people, which counts too."""
        self._notes.append(WorkerEvent(kind, text))
        self.counts[kind] += 1

    def count(self, kind: str, by: int = 1) -> None:
        """One more, or `by`."""
        self.counts[kind] += by

    def spent(self, parts: Mapping[str, float]) -> None:
        """Seconds more, by part of a step."""
        for part, seconds in parts.items():
            self._parts_since[part] += seconds  # type: ignore[assignment]

    def stepped(self, step: int, tasks: int, seconds: float, workers: int) -> None:
        """A training step was computed."""
        self._tasks_since += tasks
        self._now = {self._step: step, self._workers: workers, self._pace: tasks / seconds}
        self.tell()

    def tell(self) -> None:
        """Ray is told, once a second: telling costs more than counting.

        Gauges are told again though nothing changed, as while an evaluation lasts: Ray forgets those that are not.
        """
        if (now := time.monotonic()) - self._exported_at < EXPORT_S:
            return
        self._exported_at = now
        for gauge, value in self._now.items():
            gauge.set(value)
        if self._tasks_since > 0:
            self._tasks.inc(self._tasks_since)
            self._tasks_since = 0
        for part, spent in self._parts_since.items():
            if spent > 0:
                self._seconds.inc(spent, {"part": part})
        self._parts_since.clear()
        for kind, counter in self._counters.items():
            if (more := self.counts[kind] - self._exported[kind]) > 0:
                counter.inc(more)
        self._exported = self.counts.copy()

    def taken(self) -> list[WorkerEvent]:
        """The lines since this was last asked."""
        notes, self._notes = self._notes, []
        return notes
