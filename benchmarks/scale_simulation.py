"""Simulate the driver, its workers and its network, step by step; `scale_model.py` says what is counted and assumed."""

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from benchmarks.scale_model import CAUSES, Costs, Machines, Step, Work, draw_seconds
from cluster.actor import ActorInfo
from cluster.dispatcher import _WAIT_S
from cluster.executor import LARGEST_BLOCK
from cluster.pace import OVERDUE_EXTRA_S, OVERDUE_FACTOR, Pace
from cluster.work_queue import WorkQueue
from cluster.worker_pool import IN_FLIGHT, WorkerHandle
from metatrain.training.tree_sum import Block

_SPEEDS, _DEATHS = range(2)
"""Streams of random numbers."""


@dataclass
class _Worker:
    """A worker: the driver's own view of it, and what it really does."""

    handle: WorkerHandle
    node: int
    slowness: float
    ready_at: float
    dies: float
    free_at: float = 0.0
    spans: list[tuple[float, float, float]] = field(default_factory=list)
    """Of each call: since when it only waits for the vector, begin, end."""


class _Call(NamedTuple):
    worker: _Worker
    step: int
    number: int
    block: Block
    shards: int
    since: float
    seconds: float
    lost: bool
    replied: float
    """When the driver can read the reply, or learns that there is none."""


def simulate(costs: Costs, machines: Machines, work: Work, steps: int = 4, seed: int = 0) -> list[Step]:
    """Simulate `steps` steps after one that is left out, in which the driver learns the usual time of a shard."""
    simulation = Simulation(costs, machines, work, seed)
    return [simulation.step() for _ in range(steps + 1)][1:]


class Simulation:
    """A cluster that goes from step to step; equal arguments give equal steps."""

    def __init__(self, costs: Costs, machines: Machines, work: Work, seed: int = 0) -> None:
        self.costs, self.machines, self.work, self.seed = costs, machines, work, seed
        self.now, self._step, self._started = 0.0, 0, 0
        self.inline = work.vector_bytes < machines.inline_bytes
        self._pace = Pace()
        order = np.random.default_rng([seed, 0, _SPEEDS]).permutation(machines.workers)
        slow = set(order[: round(machines.slow_share * machines.workers)].tolist())
        self._workers: dict[int, _Worker] = {}
        self._starting: list[_Worker] = []
        self._gone: list[_Worker] = []
        for slot in range(machines.workers):
            self._start(slot // machines.per_node, machines.slow_factor if slot in slow else 1.0, 0.0)
        self._pending: dict[int, _Call] = {}
        self._arrivals: list[tuple[float, int]] = []
        self._calls = 0
        self._link_free = 0.0

    def step(self) -> Step:
        """Simulate the next step."""
        began = self.now
        self._begin()
        self._spend("bytes", self.costs.prepare + self.costs.prepare_byte * self.work.vector_bytes)
        prepared, before = self.now, sum(self._busy.values())
        while not self._queue.done:
            self._finish_starts()
            idle = self._assign()
            replies = self._wait()
            for call in replies:
                self._process(call)
            if idle or not replies:
                self._reassign_overdue()
        done = self.now
        self._pace.driver = (sum(self._busy.values()) - before) / max(1, self._messages)
        self.now += self.costs.finish + self.costs.finish_byte * self.work.vector_bytes
        self._step += 1
        return self._account(began, prepared, done)

    def _begin(self) -> None:
        """Draw the step's task seconds, and divide its shards over the workers."""
        work = self.work
        self._until = np.concatenate([[0.0], np.cumsum(draw_seconds(work, self._step, self.seed))])
        self._shards = math.ceil(work.tasks_per_step / work.shard_size)
        ready = [number for number, worker in self._workers.items() if worker.handle.ready]
        least = self._pace.least_block(len(ready), self._shards)
        self._queue = WorkQueue(self._shards, ready, LARGEST_BLOCK, least)
        self._vector_at: dict[int, float] = {}
        self._busy: Counter[str] = Counter()
        self._messages, self._empty = 0, False
        self._blocks: list[Block] = []

    def _spend(self, kind: str, seconds: float) -> None:
        """Let the driver work."""
        self.now += seconds
        self._busy[kind] += seconds

    def _start(self, node: int, slowness: float, ready_at: float) -> None:
        per_hour, number = self.machines.lost_per_hour, self._started
        rng = np.random.default_rng([self.seed, number, _DEATHS])
        dies = ready_at + float(rng.exponential(3600 / per_hour)) if per_hour else math.inf
        info = ActorInfo(number, f"{node:06}", "simulated")
        handle = WorkerHandle(number, None, True if ready_at else None, info)
        self._workers[number] = _Worker(handle, node, slowness, ready_at, dies, free_at=ready_at)
        if ready_at:
            self._starting.append(self._workers[number])
        self._started += 1

    def _finish_starts(self) -> None:
        for worker in [one for one in self._starting if one.ready_at <= self.now]:
            worker.handle.starting = None
            self._starting.remove(worker)

    def _assign(self) -> bool:
        """Do as `Dispatcher._assign`; True if there were not enough blocks."""
        late, now = Counter(call.worker.handle.number for call in self._overdue_calls()), self.now
        for _ in range(IN_FLIGHT):
            # Full workers are passed over before sorting: the order of the others, which is stable, stays the same.
            free = [worker for worker in self._workers.values() if worker.handle.calls < IN_FLIGHT]
            for worker in sorted(free, key=lambda worker: (worker.handle.calls, worker.node, worker.handle.number)):
                number = worker.handle.number
                if worker.handle.capacity(late[number], now) > 0:
                    taken = None if self._empty else self._queue.take(number, now, most=1 if late[number] else None)
                    if taken is None:
                        self._empty = True
                        return True
                    self._call(worker, *taken)
        return False

    def _call(self, worker: _Worker, number: int, block: Block) -> None:
        """Send a call; what becomes of it is known at once, as nothing that follows can change it."""
        costs, vector = self.costs, self.work.vector_bytes
        self._spend("messages", costs.call)
        self._messages += 1
        arrives = self.now + costs.latency
        if self.inline:
            self._spend("bytes", costs.call_byte * vector)
            arrives = readable = self._send(vector) + costs.latency
        else:
            if worker.node not in self._vector_at:
                sent = max(self._send(vector), self.now + vector / costs.node_link)
                self._vector_at[worker.node] = sent + costs.latency + costs.pull
            readable = self._vector_at[worker.node]
        waits = max(arrives, worker.free_at)
        start = max(waits, readable)
        took = costs.work + costs.work_byte * vector + worker.slowness * self._task_seconds(block)
        end = start + took
        lost = end > worker.dies
        worker.spans.append(tuple(min(moment, worker.dies) for moment in (waits, start, end)))  # type: ignore[arg-type]
        worker.free_at, worker.handle.last_call = end, self.now
        worker.handle.calls += 1
        self._calls += 1
        replied = max(worker.dies + self.machines.noticed, arrives) if lost else end + costs.latency
        shards = len(block.leaves(self._shards))
        self._pending[self._calls] = _Call(worker, self._step, number, block, shards, self.now, took, lost, replied)
        heapq.heappush(self._arrivals, (replied, self._calls))

    def _send(self, size: float) -> float:
        """Return when `size` bytes have left the driver's node, after all that was sent before."""
        self._link_free = max(self._link_free, self.now) + size / self.costs.driver_link
        return self._link_free

    def _task_seconds(self, block: Block) -> float:
        leaves, size = block.leaves(self._shards), self.work.shard_size
        return float(self._until[min(leaves.stop * size, self.work.tasks_per_step)] - self._until[leaves.start * size])

    def _wait(self) -> list[_Call]:
        """Wait for a reply, for at most _WAIT_S; return those that are there."""
        if not self._arrivals or self._arrivals[0][0] > self.now:
            self.now = min(self.now + _WAIT_S, self._arrivals[0][0] if self._arrivals else math.inf)
        self._spend("messages", self.costs.turn + self.costs.turn_flying * len(self._pending))
        replies = []
        while self._arrivals and self._arrivals[0][0] <= self.now:
            call = self._pending.pop(heapq.heappop(self._arrivals)[1], None)
            if call is not None and call.lost:
                self._lose(call)
            elif call is not None:
                replies.append(call)
        return replies

    def _process(self, call: _Call) -> None:
        """Receive one reply; it counts if it is of this step, and the first one for its shards."""
        costs, vector = self.costs, self.work.vector_bytes
        self._spend("messages", costs.reply)
        self._spend("bytes", costs.reply_byte * vector)
        if not self.inline:
            self._spend("messages", costs.pull)
            self._spend("bytes", vector / min(costs.driver_link, costs.node_link))
        call.worker.handle.calls -= 1
        if call.step == self._step and self._queue.complete(call.number):
            self._pace.add(call.seconds / call.shards)
            self._blocks.append(call.block)

    def _lose(self, call: _Call) -> None:
        """Replace a dead worker, and put back the blocks of all its calls."""
        worker = call.worker
        others = [number for number, other in self._pending.items() if other.worker is worker]
        for lost in [call, *(self._pending.pop(number) for number in others)]:
            if lost.step == self._step and self._queue.fail(lost.number):
                self._empty = False
        self._gone.append(self._workers.pop(worker.handle.number))
        self._start(worker.node, 1.0, self.now + self.machines.restart)

    def _overdue_calls(self) -> list[_Call]:
        """Return the calls whose reply is overdue and has not come. None is if one shard of the oldest were not."""
        each, extra, now = OVERDUE_FACTOR * self._pace.usual * IN_FLIGHT, OVERDUE_EXTRA_S, self.now
        oldest = next(iter(self._pending.values()), None)
        if oldest is None or now - oldest.since <= each + extra:
            return []
        calls = (call for call in self._pending.values() if call.replied > now)
        return [call for call in calls if now - call.since > each * call.shards + extra]

    def _reassign_overdue(self) -> None:
        """Do as `Dispatcher._reassign_overdue`: give overdue blocks to idle workers too."""
        calls, now = self._overdue_calls(), self.now
        late = Counter(call.worker.handle.number for call in calls)
        overdue = {call.number for call in calls if call.step == self._step}
        if overdue:
            overdue &= self._queue.open_assignments().keys()
        for worker in list(self._workers.values()) if overdue else []:
            handle = worker.handle
            if handle.calls == late[handle.number] and handle.capacity(late[handle.number], now) > 0:
                taken = self._queue.take_overdue(handle.number, overdue, now)
                if taken is not None:
                    self._call(worker, *taken)

    def _account(self, began: float, prepared: float, done: float) -> Step:
        """Divide the worker seconds of a step by cause."""
        workers, many = [*self._workers.values(), *self._gone], self.machines.workers
        total, tasks = many * (self.now - began), float(self._until[-1])
        lost = Counter(dict.fromkeys(CAUSES, 0.0))
        lost["broadcast"], lost["optimiser"] = many * (prepared - began), many * (self.now - done)
        lost["lost"], computed = many * (done - prepared), 0.0
        ended = max((min(end, done) for worker in workers for *_, end in worker.spans), default=prepared)
        for worker in workers:
            here, gone = max(prepared, worker.ready_at), min(done, worker.dies)
            if here < gone:
                waited, worked, last = _within(worker.spans, here, gone)
                computed += worked
                lost["broadcast"] += waited
                lost["stragglers"] += max(0.0, min(ended, gone) - last)
                lost["lost"] -= gone - here
            worker.spans = [span for span in worker.spans if span[2] > self.now]
        overhead = self._messages * (self.costs.work + self.costs.work_byte * self.work.vector_bytes)
        lost["unpacking"] = min(overhead, computed - tasks)
        lost["repeated"] = computed - tasks - lost["unpacking"]
        lost["driver"] = total - tasks - sum(lost.values())
        self._gone.clear()
        shares = {cause: lost[cause] / total for cause in CAUSES}
        return Step(self.now - began, tasks / total, shares, self._messages, dict(self._busy), self._blocks)


def _within(spans: Sequence[tuple[float, float, float]], start: float, stop: float) -> tuple[float, float, float]:
    """Return the seconds of waiting and of work between two moments, and the end of the last span before `stop`."""
    clipped = [tuple(min(max(moment, start), stop) for moment in span) for span in spans]
    waited, worked = sum(b - a for a, b, _ in clipped), sum(c - b for _, b, c in clipped)
    return waited, worked, max((end for _, _, end in clipped), default=start)
