"""One dispatcher: a step's shards from the first handed out to the last counted, whatever becomes of the workers.

Where the pool (who is there) meets the queue (what is to be done). Work is tagged (step, block, attempt), and each
shard counted once, whatever is lost, answered twice or answered late. A worker with empty hands takes over what another
is overdue with, and the first answer counts.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayError, RayTaskError

from cluster.actor import Answer, Sums, Ticket
from cluster.events import Events
from cluster.work_queue import WorkQueue
from cluster.worker_pool import GONE, IN_FLIGHT, WorkerHandle, WorkerPool, describe_death, unwrap_error
from metatrain.training.profiling import Meter
from metatrain.training.tree_sum import Block
from metatrain.types import Shard, ShardRequest, TaskFailed, WorkersLost

_TURN_S = 0.1
"""How often it is looked whether somebody is overdue while nothing comes in."""
_OVERDUE, _OVERDUE_S = 3.0, 0.25
"""An answer is overdue after so many times what it took lately, and so many seconds more."""
_SILENT = 10
"""From so many times that on, it is worth a word."""
_LATELY = 101
_DEADLY = 6
"""Shards whose workers died so often, one after another, are what kills them."""


class CompletedBlock(NamedTuple):
    """An answer that counts."""

    block: Block
    tasks: int
    pid: int
    found: Sums | None
    """None where it stayed with who found it: on `node`, as `apart`."""
    node: str
    apart: Any


class PendingCall(NamedTuple):
    """A call that has not been answered."""

    worker: WorkerHandle
    dispatcher: "Dispatcher"
    number: int
    ticket: Ticket
    shards: int
    since: float
    apart: Any


@dataclass
class Pace:
    """How long shards take, by the latest answers."""

    usual: float = math.inf
    """Seconds a shard takes, the median; without end until there has been an answer."""
    _lately: deque[float] = field(default_factory=lambda: deque(maxlen=_LATELY))

    def took(self, seconds: float) -> None:
        """A shard took so long."""
        self._lately.append(seconds)
        self.usual = median(self._lately)


@dataclass
class DispatchState:
    """What outlives a dispatcher: the workers, calls that have not been answered yet, and how long answers take."""

    pool: WorkerPool
    events: Events
    meter: Meter
    pending: dict[Any, PendingCall] = field(default_factory=dict)
    paces: dict[tuple[str, str], "Pace"] = field(default_factory=dict)
    """By what is done with a shard: its kind, and by which learner."""


class Dispatcher:
    """`shards` computed at the parameters of `vector`, in blocks of at most `largest`.

    apart: what is found travels by itself, and stays where it is until somebody asks for it.
    """

    def __init__(
        self,
        state: DispatchState,
        request: ShardRequest,
        vector: Any,
        shards: Sequence[Shard],
        largest: int,
        apart: bool,
    ) -> None:
        assert [shard.number for shard in shards] == list(range(len(shards))), "shards are numbered from 0"
        self._state, self._pool = state, state.pool
        self._request, self._vector, self._shards, self._apart = request, vector, shards, apart
        answering = [worker.number for worker in state.pool.ready() if worker.silent_since is None]
        self._queue = WorkQueue(len(shards), answering, largest)
        self._pace = state.paces.setdefault((request.kind, request.learner), Pace())
        self._deaths: Counter[int] = Counter()
        self._heard = 0.0

    @property
    def done(self) -> bool:
        """Whether every shard has been counted."""
        return self._queue.done

    def completed_blocks(self) -> Iterator[CompletedBlock]:
        """Answers that make up all shards, in order of arrival. WorkersLost: there is nobody left to ask."""
        self._heard = time.monotonic()
        yield from self._met(self._ready(0.0))  # what came while nobody looked, before anyone is called silent
        while not self.done:
            self._pool.maintain()
            self._state.events.tell()
            idle = self._assign()
            came = self._ready(_TURN_S)
            yield from self._met(came)
            if idle or not came:
                self._note_silence()
                self._take_over()
            if time.monotonic() - self._heard > self._pool.settings.deadline:
                raise WorkersLost(self._pool.describe_shortage())

    def _met(self, references: Sequence[Any]) -> Iterator[CompletedBlock]:
        """Those of what has come in that are answers that count."""
        for reference in references:
            if reference not in self._state.pending:
                self._started(reference)
            elif (done := self._landed(reference)) is not None:
                yield done

    def mark_lost(self, done: CompletedBlock) -> None:
        """What had arrived apart was lost with its node: it is to be done again."""
        self._state.events.count("retries")
        self._queue.uncount(done.block)

    def _ready(self, seconds: float) -> list[Any]:
        """What has come in; waits so long for something."""
        references = [*self._state.pending, *self._pool.starting_handles()]
        with self._state.meter.part("wait"):
            if not references:
                time.sleep(seconds)
                return []
            ready, rest = ray.wait(references, timeout=seconds, fetch_local=False)
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        return list(ready)

    def _started(self, reference: Any) -> None:
        worker = self._pool.starting_handles().get(reference)
        if worker is not None:
            self._pool.started(worker)
            self._heard = time.monotonic()

    def _assign(self) -> bool:
        """Fills everybody's hands, the emptiest first; whether there was too little for somebody."""
        now, late = time.monotonic(), self._owing()
        for _ in range(IN_FLIGHT):
            for worker in sorted(self._pool.ready(), key=lambda worker: worker.calls):
                if worker.capacity(late[worker.number], now) > 0:
                    taken = self._queue.take(worker.number, now, most=1 if late[worker.number] else None)
                    if taken is None:
                        return True
                    self._call(worker, *taken)
        return False

    def _take_over(self) -> None:
        """Blocks that are overdue, for those with empty hands."""
        now = time.monotonic()
        late, owing = self._overdue(now), self._owing()
        for worker in self._pool.ready() if late else []:
            if worker.calls == owing[worker.number] and worker.capacity(owing[worker.number], now) > 0:
                taken = self._queue.take_over(worker.number, late, now)
                if taken is not None:
                    self._state.events.count("stragglers")
                    self._call(worker, *taken)

    def _call(self, worker: WorkerHandle, number: int, block: Block) -> None:
        ticket = Ticket(self._request.step, block, number)
        members = [self._shards[leaf] for leaf in block.leaves(len(self._shards))]
        if self._apart:
            method = worker.actor.compute_apart.options(num_returns=2)
            reference, found = method.remote(ticket, self._request, self._vector, members)
        else:
            reference, found = worker.actor.compute.remote(ticket, self._request, self._vector, members), None
        worker.calls += 1
        worker.called = time.monotonic()
        self._state.pending[reference] = PendingCall(
            worker, self, number, ticket, len(members), time.monotonic(), found
        )

    def _owing(self) -> Counter[int]:
        """How many answers each worker owes that are overdue, those to earlier steps included."""
        now, pending = time.monotonic(), self._state.pending.values()
        return Counter(f.worker.number for f in pending if now - f.since > f.dispatcher.patience(f.shards))

    def patience(self, shards: int) -> float:
        """Seconds after which an answer for so many shards is overdue."""
        return _OVERDUE * self._pace.usual * IN_FLIGHT * shards + _OVERDUE_S

    def _overdue(self, now: float) -> set[int]:
        """The calls of this step whose answer is overdue."""
        return {
            number
            for number, call in self._queue.waiting()
            if now - call.since > self.patience(len(call.block.leaves(len(self._shards))))
        }

    def _note_silence(self) -> None:
        """Those who owe an answer since long, be it to an earlier step: others did its shards meanwhile."""
        now = time.monotonic()
        for call in self._state.pending.values():
            silence = now - max(call.since, call.worker.heard)
            if silence > _SILENT * call.dispatcher.patience(call.shards):
                self._pool.mark_silent(call.worker, f"has not answered for {silence:.1f} s")

    def _landed(self, reference: Any) -> CompletedBlock | None:
        """An answer that counts, or None: it is late, came to nothing, or somebody else was first."""
        call = self._state.pending.pop(reference)
        try:
            answer: Answer = ray.get(reference)
        except (ActorUnavailableError, ObjectLostError):  # lost with its node, where an answer waits in its store
            self._pool.record_failure(call.worker)
            self._give_back(call)
            return None
        except RayTaskError as error:  # the actor lives: it is the computation that fails, and would again
            self._pool.record_reply(call.worker)
            if call.dispatcher is not self:
                return None
            raise unwrap_error(error) from error
        except GONE as error:
            self._bury(call, error)
            return None
        except RayError as error:  # a full disk or object store, or Ray itself
            raise WorkersLost(
                f"Ray can go on no more ({' '.join(str(error).split())[:200]}): see `ray status`"
            ) from error
        self._heard = time.monotonic()
        self._pool.record_reply(call.worker)
        assert answer.ticket == call.ticket, "an answer to another call"
        if call.dispatcher is not self or not self._queue.count(call.number):
            return None
        members = [self._shards[leaf] for leaf in call.ticket.block.leaves(len(self._shards))]
        self._pace.took(answer.seconds / len(members))
        self._state.events.spent(answer.parts)
        tasks = sum(len(shard.indices) for shard in members)
        return CompletedBlock(call.ticket.block, tasks, answer.pid, answer.found, answer.node, call.apart)

    def _give_back(self, call: PendingCall) -> None:
        if call.dispatcher is self and self._queue.lose(call.number):
            self._state.events.count("retries")

    def _bury(self, call: PendingCall, error: RayError) -> None:
        """The worker is gone: all that it had in hands goes to others at once. TaskFailed: its tasks kill workers."""
        pending, worker = self._state.pending, call.worker
        by_itself = worker.number in self._pool.handles and not getattr(error, "preempted", False)
        if worker.number in self._pool.handles:
            self._pool.replace(worker, describe_death(error))
        forgotten = [reference for reference, other in pending.items() if other.worker is worker]
        for lost in [call, *(pending.pop(reference) for reference in forgotten)]:
            self._give_back(lost)
        if call.dispatcher is self and by_itself:
            self._count_deaths(call.ticket.block)

    def _count_deaths(self, block: Block) -> None:
        leaves = block.leaves(len(self._shards))
        self._deaths.update(leaves)
        deadly = [index for leaf in leaves if self._deaths[leaf] >= _DEADLY for index in self._shards[leaf].indices]
        if deadly:
            raise TaskFailed(
                f"tasks {deadly[0]} to {deadly[-1]} at step {self._request.step}: {_DEADLY} workers died of them one "
                "after another, most likely for want of memory: lower executor.shard_size"
            )
