"""Dispatch the shards of one step to workers, with retries for lost, late and failed calls.

Takes blocks from the work queue and calls the workers of the pool. Calls are tagged (step, block, attempt), and each
shard counts once, whatever is lost, answered twice or answered late. An idle worker recomputes blocks whose reply is
overdue elsewhere; the first reply counts. Workers that receive no more blocks of a step sample tasks of the next one,
while they would wait for the driver and for each other.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayError, RayTaskError

from cluster.actor import BlockReply, BlockSum, CallId
from cluster.connection import check_ray
from cluster.events import Events
from cluster.pace import OVERDUE_EXTRA_S, OVERDUE_FACTOR, NextStep, Pace
from cluster.ray_errors import ACTOR_DEAD, describe_death, unwrap_error
from cluster.work_queue import WorkQueue
from cluster.worker_pool import IN_FLIGHT, WorkerHandle, WorkerPool
from metatrain.errors import EvaluationStopped, StepAbandoned, TaskFailed, WorkersLost
from metatrain.signals import GRACE_S, stop_is_overdue
from metatrain.training.profiling import Meter
from metatrain.training.tree_sum import Block
from metatrain.types import STEPS_OF_TRAINING, Shard, ShardRequest

_WAIT_S = 0.1
"""Longest wait for a reply before overdue ones are looked for."""
_SILENT_FACTOR = 10
"""After this multiple of the time to overdue, the worker is marked as silent."""
_OVERDUE_CHECK_S = 0.05
"""Time between two searches for overdue replies, each of which looks at all calls."""
_FETCHED = 8
"""Most replies that are fetched from other nodes at once: each may be as large as the parameters."""
_MAX_DEATHS = 6
"""Workers in a row that died of the same shard before its tasks are blamed."""


class CompletedBlock(NamedTuple):
    """A block whose result counts."""

    block: Block
    tasks: int
    pid: int
    total: BlockSum


class PendingCall(NamedTuple):
    """A call without a reply yet."""

    worker: WorkerHandle
    dispatcher: "Dispatcher"
    id: CallId
    shards: int
    since: float


@dataclass
class DispatchState:
    """What is kept from step to step: the workers, calls without a reply, and the pace."""

    pool: WorkerPool
    events: Events
    meter: Meter
    pending: dict[Any, PendingCall] = field(default_factory=dict)
    """By the reference of the reply."""
    paces: dict[tuple[str, str], Pace] = field(default_factory=dict)
    """By the request's kind and learner, which need different times."""


class Dispatcher:
    """Compute `shards` at the parameters `vector`, in blocks of at most `largest` shards."""

    def __init__(
        self, state: DispatchState, request: ShardRequest, vector: Any, shards: Sequence[Shard], largest: int
    ) -> None:
        assert [shard.number for shard in shards] == list(range(len(shards))), "shards are numbered from 0"
        self._state, self._pool = state, state.pool
        self._request, self._vector, self._shards = request, vector, shards
        responding = [worker.number for worker in state.pool.ready() if worker.silent_since is None]
        self._pace = state.paces.setdefault((request.kind, request.learner), Pace())
        least = self._pace.least_block(len(responding), len(shards))
        self._queue = WorkQueue(len(shards), responding, largest, least)
        self._next = NextStep(shards, responding)
        self._replies, self._waited = 0, 0.0
        self._deaths: Counter[int] = Counter()
        self._last_reply = 0.0
        self._overdue: list[Any] = []
        self._overdue_checked = 0.0

    def completed_blocks(self) -> Iterator[CompletedBlock]:
        """Yield blocks that together hold all shards once, in order of arrival.

        Raises WorkersLost when no worker replies for `executor.deadline` seconds, TaskFailed when a task raises or
        kills its workers.
        """
        began = self._last_reply = time.monotonic()
        yield from self._process(self._wait(0.0))  # replies to earlier steps, before any worker is marked as silent
        while not self._queue.done:
            self._pool.maintain()
            self._state.events.export()
            idle = self._assign()
            replies = self._wait(_WAIT_S)
            check_ray()
            if stop_is_overdue():
                stopped = StepAbandoned if self._request.kind in STEPS_OF_TRAINING else EvaluationStopped
                raise stopped(f"{self._queue.left} of its shards were not computed {GRACE_S:.0f} s after a signal")
            yield from self._process(replies)
            if idle or not replies:
                self._mark_silent()
                self._reassign_overdue()
            if time.monotonic() - self._last_reply > self._pool.settings.deadline:
                raise WorkersLost(self._pool.describe_shortage())
        self._pace.driver = (time.monotonic() - began - self._waited) / max(1, self._replies)

    def overdue_after(self, shards: int) -> float:
        """Return after how many seconds the reply for so many shards is overdue."""
        return OVERDUE_FACTOR * self._pace.usual * IN_FLIGHT * shards + OVERDUE_EXTRA_S

    def _wait(self, seconds: float) -> list[Any]:
        """Return the references that are ready, after at most `seconds`."""
        references, began = [*self._state.pending, *self._pool.starting()], time.monotonic()
        with self._state.meter.part("wait"):
            if not references:
                time.sleep(seconds)
                self._waited += seconds
                return []
            ready, rest = ray.wait(references, timeout=seconds, fetch_local=False)
            self._waited += time.monotonic() - began
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        return list(ready)

    def _process(self, references: Sequence[Any]) -> Iterator[CompletedBlock]:
        """Handle what is ready, and yield the replies that count."""
        for first in range(0, len(references), _FETCHED):
            some = references[first : first + _FETCHED]
            fetched = _fetch([reference for reference in some if reference in self._state.pending])
            for reference in some:
                if reference in self._state.pending:
                    call = self._state.pending.pop(reference)
                    if (done := self._process_reply(call, reference, fetched.pop(reference, None))) is not None:
                        yield done
                elif (worker := self._pool.starting().get(reference)) is not None:
                    self._pool.continue_start(worker)
                    self._last_reply = time.monotonic()

    def _assign(self) -> bool:
        """Give blocks to all workers with capacity, the emptiest first; True if there were not enough blocks."""
        now, late = time.monotonic(), self._count_overdue()
        for _ in range(IN_FLIGHT):
            for worker in self._find_free(late, now):
                taken = self._queue.take(worker.number, now, most=1 if late[worker.number] else None)
                if taken is None:
                    self._sample_ahead(late, now)
                    return True
                self._call(worker, *taken)
        return False

    def _find_free(self, late: Mapping[int, int], now: float) -> list[WorkerHandle]:
        """Return the workers with capacity, the emptiest first, then those of one node in a row."""
        free = [worker for worker in self._pool.handles.values() if worker.capacity(late[worker.number], now) > 0]
        return sorted(free, key=lambda worker: (worker.calls, worker.node, worker.number))

    def _reassign_overdue(self) -> None:
        """Give overdue blocks to idle workers too."""
        overdue = {call.id.attempt for call in self._find_overdue() if call.dispatcher is self}
        overdue &= self._queue.open_assignments().keys()
        now, late = time.monotonic(), self._count_overdue()
        for worker in self._find_free(late, now) if overdue else []:
            if worker.calls == late[worker.number]:
                taken = self._queue.take_overdue(worker.number, overdue, now)
                if taken is not None:
                    self._state.events.count("stragglers")
                    self._call(worker, *taken)
                elif not worker.calls:  # a worker that holds nothing could take what any other one can
                    return

    def _sample_ahead(self, late: Mapping[int, int], now: float) -> None:
        """Let workers that receive no more blocks sample tasks of the next step, once each."""
        if self._request.kind != "gradient" or not self._next.is_worth_sampling(self._pace):
            return
        for worker in self._find_free(late, now):
            if shards := self._next.take(worker.number):
                worker.actor.sample.options(num_returns=0).remote(self._request, shards)

    def _call(self, worker: WorkerHandle, number: int, block: Block) -> None:
        call, members = CallId(self._request.step, block, number), self._members(block)
        reference = worker.actor.compute.remote(call, self._request, self._vector, members)
        worker.calls += 1
        worker.last_call = time.monotonic()
        self._state.pending[reference] = PendingCall(worker, self, call, len(members), time.monotonic())

    def _members(self, block: Block) -> list[Shard]:
        return [self._shards[leaf] for leaf in block.leaves(len(self._shards))]

    def _find_overdue(self) -> list[PendingCall]:
        """Return the calls, those of earlier steps included, whose reply is overdue and has not come meanwhile."""
        now, pending = time.monotonic(), self._state.pending
        if now - self._overdue_checked >= _OVERDUE_CHECK_S:
            self._overdue_checked = now
            self._overdue = [
                reference
                for reference, call in pending.items()
                if now - call.since > call.dispatcher.overdue_after(call.shards)
            ]
        elif self._overdue:
            self._overdue = [reference for reference in self._overdue if reference in pending]
        if self._overdue:  # what has come while the driver was busy waits for it, not for the worker
            self._overdue = ray.wait(self._overdue, num_returns=len(self._overdue), timeout=0, fetch_local=False)[1]
        return [pending[reference] for reference in self._overdue]

    def _count_overdue(self) -> Counter[int]:
        """Count the overdue replies of each worker."""
        return Counter(call.worker.number for call in self._find_overdue())

    def _mark_silent(self) -> None:
        """Mark workers whose reply is long overdue; their shards were recomputed elsewhere."""
        now = time.monotonic()
        for call in self._find_overdue():
            silence = now - max(call.since, call.worker.last_reply)
            if silence > _SILENT_FACTOR * call.dispatcher.overdue_after(call.shards):
                self._pool.mark_silent(call.worker, f"has not answered for {silence:.1f} s")

    def _process_reply(self, call: PendingCall, reference: Any, fetched: BlockReply | None) -> CompletedBlock | None:
        """Return the block if the reply counts; None if it is late, lost, or not the first for a shard."""
        try:
            reply: BlockReply = fetched or ray.get(reference)
        except (ActorUnavailableError, ObjectLostError):  # a reply may be lost with the node that stores it
            self._pool.record_failure(call.worker)
            self._requeue(call)
            return None
        except RayTaskError as error:  # the actor lives: the computation failed, and would fail again
            self._pool.record_reply(call.worker)
            if call.dispatcher is not self:
                return None
            raise unwrap_error(error) from error
        except ACTOR_DEAD as error:
            self._handle_death(call, error)
            return None
        except RayError as error:  # a full disk or object store, or Ray itself
            raise WorkersLost(
                f"Ray can go on no more ({' '.join(str(error).split())[:200]}): see `ray status`"
            ) from error
        self._last_reply = time.monotonic()
        self._replies += 1
        self._pool.record_reply(call.worker)
        assert reply.call == call.id, "a reply to another call"
        if call.dispatcher is not self or not self._queue.complete(call.id.attempt):
            return None
        self._pace.add(reply.seconds / call.shards, reply.parts.get("sample", 0.0) / call.shards)
        self._state.events.add_seconds(reply.parts)
        block = call.id.block
        tasks = sum(len(shard.indices) for shard in self._members(block))
        return CompletedBlock(block, tasks, reply.pid, reply.total)

    def _requeue(self, call: PendingCall) -> None:
        if call.dispatcher is self and self._queue.fail(call.id.attempt):
            self._state.events.count("retries")

    def _handle_death(self, call: PendingCall, error: RayError) -> None:
        """Replace the dead worker and put back all of its blocks. Raises TaskFailed when a task kills its workers."""
        pending, worker = self._state.pending, call.worker
        alone = worker.number in self._pool.handles and not getattr(error, "preempted", False)
        if worker.number in self._pool.handles:
            self._pool.replace(worker, describe_death(error))
        others = [reference for reference, other in pending.items() if other.worker is worker]
        for lost in [call, *(pending.pop(reference) for reference in others)]:
            self._requeue(lost)
        if call.dispatcher is self and alone:
            self._count_death(call.id.block)

    def _count_death(self, block: Block) -> None:
        leaves = block.leaves(len(self._shards))
        self._deaths.update(leaves)
        deadly = [index for leaf in leaves if self._deaths[leaf] >= _MAX_DEATHS for index in self._shards[leaf].indices]
        if deadly:
            raise TaskFailed(
                f"tasks {deadly[0]} to {deadly[-1]} at step {self._request.step}: {_MAX_DEATHS} workers died of them "
                "one after another, most likely for want of memory: lower executor.shard_size"
            )


def _fetch(references: Sequence[Any]) -> dict[Any, BlockReply]:
    """Fetch replies at once, as each may be on another node; none of them if one of the calls has failed."""
    try:
        return dict(zip(references, ray.get(list(references)), strict=True)) if len(references) > 1 else {}
    except RayError:  # of one of them: each is read alone, to find out which
        return {}
