"""The workers of a run: made, watched, replaced, let go. They come and go while the run lasts.

A worker is one worker's place. Its actor is *starting* until it has said who it is (and, where the engine compiles, has
compiled); then it is *here* and given work. An actor that died is replaced. One that cannot be reached, or does not
answer in time, gets less work and then none until it answers; only after `executor.timeout` is it replaced too. A worker
on a node that is about to leave is *leaving*: it ends what it has in hands while another starts elsewhere.

Seats beyond what the cluster has room for simply wait to be placed, which also tells an autoscaler what is wanted.
"""

import builtins
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.actor import Hello, ShardActor
from cluster.events import Events
from cluster.nodes import leaving_nodes
from metatrain.engine import NotCompilable
from metatrain.settings import ExecutorSettings
from metatrain.types import DRIVER_NODE_LEAVING, Shard, TaskFailed, WorkersLost

GONE = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, ActorUnschedulableError)
"""What Ray raises for an actor that is no more; it does not call all of them actor errors."""
IN_FLIGHT = 2
"""Blocks a worker has in hands, at most: it never waits for the driver, and a lost one loses little."""
_STARTS = 3
"""How often in a row a worker may fail to start for want of a file or a connection."""
_LONGEST_PAUSE_S = 60.0
_LOOK_S = 2.0
_SAY_S = 15.0
"""How often the cluster is asked which nodes are about to leave."""
_MOST_OVERDUE, _TRY_S = 3, 0.1
"""Who owes answers is given one shard more after so many seconds, twice as many the next time, and so on."""
_MOST_FAILURES = 6
_UNREACHED = 5
"""After so many calls in a row that did not reach a worker, it is worth a word."""


@dataclass
class WorkerHandle:
    """One worker's place, and what is known of who sits there."""

    number: int
    actor: Any
    starting: Any
    """What it has been asked before it gets work; None once it is here."""
    hello: Hello | None = None
    calls: int = 0
    """That have not been answered yet, those of earlier steps included."""
    silent_since: float | None = None
    """When it was first noticed that an answer of its is overdue."""
    failures: int = 0
    """Calls in a row that did not reach it, or whose answer did not reach us."""
    called: float = 0.0
    """When it was last given work."""
    heard: float = 0.0
    """When it last answered."""
    leaving: bool = False

    @property
    def ready(self) -> bool:
        """Whether it may be given work, as far as it is known."""
        return self.starting is None and not self.leaving

    @property
    def name(self) -> str:
        """For people."""
        return f"worker {self.hello.pid} on {self.hello.host}" if self.hello else f"worker number {self.number}"

    def capacity(self, overdue: int, now: float) -> int:
        """How many blocks more it may be given now, if answers to so many calls are overdue.

        Those may have been lost on the way, so it is given another one now and then, to see whether it answers.
        """
        if not self.ready:
            return 0
        if self.failures and now - self.called < _TRY_S * 2.0 ** min(self.failures, _MOST_FAILURES):
            return 0
        if overdue == 0:
            return IN_FLIGHT - self.calls
        tried = self.calls > overdue or overdue >= _MOST_OVERDUE
        return int(not tried and now - self.called > _TRY_S * 2.0**overdue)


@dataclass
class WorkerPool:
    """All the handles of a run."""

    settings: ExecutorSettings
    config: Any
    """A reference to the run's configuration, for actors."""
    options: dict[str, Any]
    events: Events
    handles: dict[int, WorkerHandle] = field(default_factory=dict)
    _made: int = 0
    _failed_starts: int = 0
    _fill_from: float = 0.0
    _compiled_for: Sequence[Shard] = ()
    _looked: float = 0.0
    _home_leaves: bool = False
    _few_since: float | None = None
    _told: float = 0.0
    say: Callable[[str], None] = lambda text: None
    """Told at once, while nothing else can be: there is nobody to work."""
    training_started: bool = False
    """Whether the run has begun: who comes from then on is worth a word."""

    def ready(self) -> list[WorkerHandle]:
        """The handles that may be given work, those of one node in a row."""
        return sorted(
            (worker for worker in self.handles.values() if worker.ready), key=lambda s: (s.hello.node, s.number)
        )  # type: ignore[union-attr]

    def maintain(self) -> None:
        """Whatever is due: handles filled, what nodes leave looked up, those who have left or are silent let go.

        WorkersLost: there have been fewer than will do, for longer than the deadline.
        """
        now = time.monotonic()
        if now - self._looked > 5 * _LOOK_S:
            self._few_since = None  # nobody looked: who came meanwhile has not been met yet
        if now - self._looked >= _LOOK_S:
            self._looked = now
            self._make_ready_to_leave(leaving_nodes())
        for worker in list(self.handles.values()):
            if worker.silent_since is not None and now - worker.silent_since > self.settings.timeout:
                self.replace(worker, f"has not answered for {now - worker.silent_since:.0f} s")
            elif worker.leaving and not worker.calls:
                self._dismiss(worker)
        while now >= self._fill_from and sum(not s.leaving for s in self.handles.values()) < self.settings.max_workers:
            self._fill()
        self._few_since = (self._few_since or now) if len(self.ready()) < self.settings.min_workers else None
        if self._few_since is not None and now - self._few_since > self.settings.deadline:
            raise WorkersLost(self.describe_shortage())
        if self._few_since is not None and now - max(self._few_since, self._told) > _SAY_S:
            self._told = now
            free, there = (ask().get("CPU", 0) for ask in (ray.available_resources, ray.cluster_resources))  # type: ignore[no-untyped-call]
            few = f"{len(self.ready())} of at least {self.settings.min_workers} workers are here"
            self.say(f"waiting for workers: {few}, {free:g} of the cluster's {there:g} CPUs are free")

    def starting_handles(self) -> dict[Any, WorkerHandle]:
        """What handles that start have been asked, by reference."""
        return {worker.starting: worker for worker in self.handles.values() if worker.starting is not None}

    def started(self, worker: WorkerHandle) -> None:
        """What `worker` was asked has been answered; what comes of it. WorkersLost, NotCompilable: it will never work."""
        asked, worker.starting = worker.starting, None
        try:
            answer = ray.get(asked)
        except ActorUnavailableError:
            worker.starting = worker.actor.hello.remote()
            return
        except GONE as error:
            self._start_failed(worker, error)
            return
        except RayTaskError as error:
            if not self.training_started:
                raise unwrap_error(error) from error
            self._turn_away(worker, str(unwrap_error(error)))
            return
        if isinstance(answer, Hello):
            worker.hello = answer
            if self._compiled_for:
                worker.starting = worker.actor.compile.remote(self._compiled_for)
                return
        self._failed_starts = 0
        if self.training_started:
            self.events.note(
                "worker-joined", f"{worker.name} joined: {len(self.ready())} of {self.settings.max_workers} work now"
            )

    def wait_until_ready(self, patience: float) -> None:
        """Waits until all handles are here; after `patience` seconds, until the fewest that will do are."""
        began, self._few_since = time.monotonic(), None
        while True:
            self.maintain()
            waited = time.monotonic() - began
            few = len(self.ready()) < self.settings.min_workers
            if not self.starting_handles() or (waited > patience and not few):
                return
            ready, _ = ray.wait(list(self.starting_handles()), timeout=1.0)
            for reference in ready:
                self.started(self.starting_handles()[reference])

    def compile(self, shards: Sequence[Shard]) -> None:
        """Has every worker compile what `shards` need, those that come later too, before they are given work."""
        self._compiled_for = shards
        for worker in self.ready():
            worker.starting = worker.actor.compile.remote(shards)

    def record_reply(self, worker: WorkerHandle) -> None:
        """A call of `worker` was answered, be it late."""
        worker.calls -= 1
        if worker.silent_since is not None and worker.number in self.handles:
            self.events.note("worker-back", f"{worker.name} answers again, and is given work again")
        worker.silent_since, worker.failures, worker.heard = None, 0, time.monotonic()

    def record_failure(self, worker: WorkerHandle) -> None:
        """A call did not reach `worker`, or its answer was lost: it may be dead, or the network was only busy."""
        worker.calls -= 1
        worker.failures += 1
        self.events.count("unreached")
        if worker.failures >= _UNREACHED:
            self.mark_silent(worker, "cannot be reached")

    def mark_silent(self, worker: WorkerHandle, how: str) -> None:
        """An answer of `worker` is overdue."""
        if worker.silent_since is None and worker.number in self.handles:
            worker.silent_since = time.monotonic()
            after = f"it is replaced unless it answers within {self.settings.timeout:.0f} s (executor.timeout)"
            self.events.note("worker-silent", f"{worker.name} {how}: others do its shards meanwhile; {after}")

    def replace(self, worker: WorkerHandle, why: str) -> None:
        """Another actor in the place of `worker`, whose calls are forgotten."""
        self.events.note("worker-lost", f"{worker.name} {why}: its shards go to others, and another one starts")
        self._dismiss(worker)

    def describe_shortage(self) -> str:
        """What to say when there are not enough workers."""
        found, least = len(self.ready()), self.settings.min_workers
        told = f"{found} of at least {least} workers are here" if found else "no worker is left, or none could start"
        if found >= least:
            told = f"none of {found} workers has answered"
        return f"{told}, for {self.settings.deadline:g} s (executor.deadline): see `ray status` for what is missing"

    def close(self) -> None:
        """All actors end. Calling it twice does no harm."""
        for worker in list(self.handles.values()):
            self._dismiss(worker)

    def reachable(self) -> Iterator[WorkerHandle]:
        """Those that have said who they are, silent ones left out."""
        return (worker for worker in self.handles.values() if worker.hello is not None and worker.silent_since is None)

    def _fill(self) -> None:
        actor: Any = ray.remote(ShardActor).options(**self.options).remote(self.config)
        self.handles[self._made] = WorkerHandle(self._made, actor, actor.hello.remote())
        self._made += 1

    def _dismiss(self, worker: WorkerHandle) -> None:
        del self.handles[worker.number]
        ray.kill(worker.actor)

    def _start_failed(self, worker: WorkerHandle, error: RayError) -> None:
        """Another try where something outside may have been the reason; WorkersLost where it would happen again."""
        reason = _last_line(error)
        refused = isinstance(error, RayActorError) and error.actor_init_failed
        if self.training_started:
            self._turn_away(worker, reason if refused else describe_death(error))
            return
        self._failed_starts += 1
        outside = not refused or _names_an_os_error(reason)
        if not outside or self._failed_starts >= _STARTS * self.settings.max_workers:
            raise WorkersLost(f"a worker cannot start: {reason}") from error
        self.replace(worker, f"could not start ({reason})" if refused else describe_death(error))

    def _turn_away(self, worker: WorkerHandle, why: str) -> None:
        """A worker that cannot start while others work ends nothing: it is tried again, after a growing pause."""
        self._failed_starts += 1
        pause = min(_LONGEST_PAUSE_S, 2.0 ** min(self._failed_starts, 6))
        self._fill_from = time.monotonic() + pause
        self.events.note("worker-lost", f"{worker.name} could not start ({why}): another one is tried in {pause:.0f} s")
        self._dismiss(worker)

    def _make_ready_to_leave(self, nodes: dict[str, float]) -> None:
        """nodes: seconds left to each node that is about to leave, by its id."""
        home = ray.get_runtime_context().get_node_id()
        if home in nodes and not self._home_leaves:
            self._home_leaves = True
            self.events.note(
                DRIVER_NODE_LEAVING, f"the driver's own node leaves in {nodes[home]:.0f} s: the state is kept now"
            )
        for worker in self.handles.values():
            if worker.hello is not None and worker.hello.node in nodes and not worker.leaving:
                worker.leaving = True
                left = f"{nodes[worker.hello.node]:.0f} s"
                self.events.note("node-leaving", f"{worker.name} gets no more work, its node leaves in {left}")


def describe_death(error: RayError) -> str:
    """What became of an actor, in a few words."""
    if isinstance(error, OutOfMemoryError):
        return "was killed, as its node had no memory left"
    if isinstance(error, RayActorError) and error.preempted:
        return "went with its node, which was preempted"
    text = str(error)
    return "went with its node" if "node" in text and "died" in text.split("node", 1)[1][:200] else "died"


def _last_line(error: RayError) -> str:
    """What went wrong in the actor: Ray keeps the text alone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _names_an_os_error(line: str) -> bool:
    kind = getattr(builtins, line.partition(":")[0], None)
    return isinstance(kind, type) and issubclass(kind, OSError)


def unwrap_error(error: RayTaskError) -> Exception:
    """What the worker raised, without the traceback that Ray's own message is."""
    found = error.cause
    if isinstance(found, NotCompilable):
        return NotCompilable(str(found))
    return TaskFailed(
        str(found) if isinstance(found, TaskFailed) else " ".join(f"{type(found).__name__}: {found}".split())
    )
