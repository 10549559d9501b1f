"""Kill and stop the processes of a test cluster, as a seed decides, and print each action."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ray.cluster_utils import Cluster


class Deed(NamedTuple):
    """An action: seconds since the beginning, outer step, what was done and to which process."""

    seconds: float
    step: int
    kind: str
    whom: str


class Table:
    """The actions so far, printed as they happen."""

    def __init__(self) -> None:
        self.deeds: list[Deed] = []
        self._began = time.monotonic()
        print(f"{'seconds':>8}  {'step':>5}  {'event':<16}  to whom", flush=True)

    def note(self, step: int, kind: str, whom: str) -> None:
        self.deeds.append(Deed(time.monotonic() - self._began, step, kind, whom))
        print(f"{self.deeds[-1].seconds:8.1f}  {step:5d}  {kind:<16}  {whom}", flush=True)

    def counts(self) -> Counter[str]:
        return Counter(deed.kind for deed in self.deeds)

    def kills(self) -> int:
        """Count the workers, drivers and nodes that were killed."""
        return sum(count for kind, count in self.counts().items() if kind.startswith("kill"))


class Nodes:
    """A cluster whose head has no CPU for workers, and nodes of one CPU each that come and go."""

    def __init__(self, count: int) -> None:
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}, shutdown_at_exit=True
        )
        self.address = self._cluster.address
        self.nodes: list[Any] = [self._cluster.add_node(num_cpus=1) for _ in range(count)]

    def add(self) -> str:
        self.nodes.append(self._cluster.add_node(num_cpus=1))
        return str(self.nodes[-1].node_id[:8])

    def remove(self, number: int) -> str:
        node = self.nodes.pop(number)
        self._cluster.remove_node(node, allow_graceful=False)
        return str(node.node_id[:8])

    def workers(self) -> list[int]:
        """Return the processes of all actors that compute."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.nodes]
        return sorted(pid for raylet in raylets for pid in _below(raylet) if _title(pid).startswith("ray::ShardActor"))

    def close(self) -> None:
        while self.nodes:
            self.remove(0)
        self._cluster.shutdown()


class Monkey:
    """Do one harmful action at a time; `rng` decides which, and to which process."""

    def __init__(self, nodes: Nodes, table: Table, rng: random.Random) -> None:
        self._nodes, self._table, self._rng = nodes, table, rng
        self._missing: list[float] = []
        self._stopped: dict[int, float] = {}

    def act(self, step: int, kill_driver: Callable[[], int]) -> None:
        """Do one action at `step`; `kill_driver` kills the driver and returns its process."""
        deeds = {"kill worker": 69, "kill driver": 14, "kill node": 9, "stop worker": 8}
        kind = self._rng.choices(list(deeds), list(deeds.values()))[0]
        if kind == "kill driver":
            self._table.note(step, kind, str(kill_driver()))
        elif kind == "kill node" and len(self._nodes.nodes) > 1:
            self._table.note(step, kind, self._nodes.remove(self._rng.randrange(len(self._nodes.nodes))))
            self._missing.append(time.monotonic() + self._rng.uniform(3, 10))
        elif workers := [pid for pid in self._nodes.workers() if pid not in self._stopped]:
            pid = self._rng.choice(workers)
            stop = kind == "stop worker"
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if stop else signal.SIGKILL)
                self._table.note(step, "stop worker" if stop else "kill worker", str(pid))
            if stop:
                self._stopped[pid] = time.monotonic() + self._rng.uniform(2, 8)

    def tidy(self, step: int, all_of_it: bool = False) -> None:
        """Restore what is due: nodes come back, stopped workers go on."""
        now = time.monotonic()
        for pid in [pid for pid, until in self._stopped.items() if now > until or all_of_it]:
            del self._stopped[pid]
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                self._table.note(step, "go on", str(pid))
        for until in [until for until in self._missing if now > until or all_of_it]:
            self._missing.remove(until)
            self._table.note(step, "add node", self._nodes.add())


def _below(pid: int) -> Iterator[int]:
    """Return all descendants of `pid`."""
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from _below(int(child))


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
