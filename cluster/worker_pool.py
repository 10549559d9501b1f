"""Start, watch, replace and remove the worker actors of a run; workers may join and leave while it lasts.

A worker is *starting* until its actor has replied to `info` (and, with a compiled engine, to `compile`); then it is
*ready* and receives calls. An actor that died is replaced. One that cannot be reached or does not reply in time
receives fewer calls, then none until it replies; after `executor.timeout` it is replaced. A worker on a node that is
about to leave the cluster is *leaving*: it finishes its calls while a new one starts elsewhere.

Actors that the cluster has no room for stay pending in Ray, which also requests nodes from an autoscaler.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from cluster.actor import ActorInfo, ShardActor
from cluster.connection import check_ray, lost
from cluster.events import Events
from cluster.nodes import NodeWatch
from cluster.ray_errors import ACTOR_DEAD, describe_death, last_line, names_os_error, unwrap_error
from metatrain.errors import StepAbandoned, WorkersLost
from metatrain.job_secrets import held_secrets
from metatrain.settings import ExecutorSettings
from metatrain.signals import stop_is_overdue
from metatrain.types import DRIVER_NODE_LEAVING, Shard

IN_FLIGHT = 2
"""Most blocks that a worker holds at a time: enough that it never waits for the driver."""
_STARTS_PER_WORKER = 3
"""Failed starts in a row for want of a file or a connection, per worker, before the run gives up."""
_MAX_START_PAUSE_S = 60.0
_NODE_CHECK_S = 2.0
_ANNOUNCE_S = 15.0
"""Time between two lines that say that workers are missing."""
_MAX_OVERDUE, _PROBE_S = 3, 0.1
"""A worker with overdue replies gets one more shard after _PROBE_S * 2**overdue seconds, up to _MAX_OVERDUE."""
_MAX_BACKOFF = 6
_UNREACHABLE_AFTER = 5
"""Failed calls in a row after which a worker is reported as unreachable."""


@dataclass
class WorkerHandle:
    """One worker actor, with what the driver knows of its state."""

    number: int
    actor: Any
    starting: Any
    """Reference of the reply that has to come before it receives calls; None once it has."""
    info: ActorInfo | None = None
    calls: int = 0
    """Calls without a reply, those of earlier steps included."""
    silent_since: float | None = None
    failures: int = 0
    """Calls in a row whose request or reply was lost."""
    last_call: float = 0.0
    last_reply: float = 0.0
    leaving: bool = False

    @property
    def ready(self) -> bool:
        """Tell whether it may receive calls."""
        return self.starting is None and not self.leaving

    @property
    def node(self) -> str:
        """Return the node that it runs on, once it is ready."""
        assert self.info is not None, "the worker has not replied"
        return self.info.node

    @property
    def compiling(self) -> bool:
        """Tell whether it is here, and will receive calls once its code is compiled."""
        return self.info is not None and self.starting is not None and not self.leaving

    @property
    def name(self) -> str:
        """Name the process and the host, for messages."""
        return f"worker {self.info.pid} on {self.info.host}" if self.info else f"worker number {self.number}"

    def capacity(self, overdue: int, now: float) -> int:
        """Return how many more blocks it may receive at time `now`, while `overdue` of its replies are late.

        Late replies may have been lost on the way, so it receives another block now and then as a probe.
        """
        if not self.ready:
            return 0
        if self.failures and now - self.last_call < _PROBE_S * 2.0 ** min(self.failures, _MAX_BACKOFF):
            return 0
        if overdue == 0:
            return IN_FLIGHT - self.calls
        probed = self.calls > overdue or overdue >= _MAX_OVERDUE
        return int(not probed and now - self.last_call > _PROBE_S * 2.0**overdue)


@dataclass
class WorkerPool:
    """The workers of a run, by number, and the rules by which they are started and replaced."""

    settings: ExecutorSettings
    config: Any
    """Reference of the run's configuration, for actors."""
    options: dict[str, Any]
    events: Events
    handles: dict[int, WorkerHandle] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None
    """Called with a line while workers are missing, when nothing else reports."""
    training_started: bool = False
    """Set after the first step: from then on a new worker is reported, and a failed start ends nothing."""
    _started: int = 0
    _failed_starts: int = 0
    _start_from: float = 0.0
    _compiled_for: Sequence[Shard] = ()
    _checked: float = 0.0
    _home_leaves: bool = False
    _nodes: NodeWatch = field(default_factory=NodeWatch)
    _short_since: float | None = None
    """When too few workers were here, ready or compiling; None while enough are."""
    _waiting_since: float | None = None
    """When too few workers were ready; None while enough are."""
    _announced: float = 0.0

    def ready(self) -> list[WorkerHandle]:
        """Return the workers that may receive calls, those of one node in a row."""
        ready = (worker for worker in self.handles.values() if worker.ready)
        return sorted(ready, key=lambda worker: (worker.node, worker.number))

    def maintain(self) -> None:
        """Start missing workers, replace silent ones, release those on leaving nodes.

        Raises WorkersLost when fewer than `executor.workers.min` were here, ready or compiling, for longer than
        `executor.deadline`, and when Ray itself has failed.
        """
        check_ray()
        now = time.monotonic()
        if now - self._checked > 5 * _NODE_CHECK_S:
            self._short_since = None  # no call for a while: workers may have started since
        if now - self._checked >= _NODE_CHECK_S:
            self._checked = now
            self._mark_leaving(self._nodes.leaving)
            self._nodes.check(self.events)
        for worker in list(self.handles.values()):
            if worker.silent_since is not None and now - worker.silent_since > self.settings.timeout:
                self.replace(worker, f"has not answered for {now - worker.silent_since:.0f} s")
            elif worker.leaving and not worker.calls:
                self._remove(worker)
        while now >= self._start_from and self._count_staying() < self.settings.max_workers:
            self._start()
        self._check_shortage(now)

    def starting(self) -> dict[Any, WorkerHandle]:
        """Return the workers that are starting, by the reference of the reply that they owe."""
        return {worker.starting: worker for worker in self.handles.values() if worker.starting is not None}

    def continue_start(self, worker: WorkerHandle) -> None:
        """Take the reply that `worker` owed and mark it ready, or request the next one.

        Raises WorkersLost or NotCompilable, before training has started, when no worker can ever start.
        """
        reference, worker.starting = worker.starting, None
        try:
            reply = ray.get(reference)
        except ActorUnavailableError:
            worker.starting = worker.actor.info.remote()
            return
        except ACTOR_DEAD as error:
            self._handle_failed_start(worker, error)
            return
        except RayTaskError as error:
            if not self.training_started:
                raise unwrap_error(error) from error
            self._retry_start_later(worker, str(unwrap_error(error)))
            return
        if isinstance(reply, ActorInfo):
            worker.info = reply
            if self._compiled_for:
                worker.starting = worker.actor.compile.remote(self._compiled_for)
                return
        self._failed_starts = 0
        if self.training_started:
            joined = f"{worker.name} joined: {len(self.ready())} of {self.settings.max_workers} work now"
            self.events.note("worker-joined", joined)

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until all workers are ready; after `seconds`, until `executor.workers.min` of them are."""
        began, self._short_since = time.monotonic(), None
        while True:
            self.maintain()
            if stop_is_overdue(0.0):
                raise StepAbandoned("workers were still starting")
            enough = len(self.ready()) >= self.settings.min_workers
            if not self.starting() or (enough and time.monotonic() - began > seconds):
                return
            replies, _ = ray.wait(list(self.starting()), timeout=1.0)
            for reference in replies:
                self.continue_start(self.starting()[reference])

    def compile(self, shards: Sequence[Shard]) -> None:
        """Let every worker, later ones included, compile for `shards` before it receives calls."""
        self._compiled_for = shards
        for worker in self.ready():
            worker.starting = worker.actor.compile.remote(shards)

    def record_reply(self, worker: WorkerHandle) -> None:
        """Note that a call of `worker` was answered, even if late."""
        worker.calls -= 1
        if worker.silent_since is not None and worker.number in self.handles:
            self.events.note("worker-back", f"{worker.name} answers again, and is given work again")
        worker.silent_since, worker.failures, worker.last_reply = None, 0, time.monotonic()

    def record_failure(self, worker: WorkerHandle) -> None:
        """Note that a call to `worker`, or its reply, was lost: the actor may be dead, or the network busy."""
        worker.calls -= 1
        worker.failures += 1
        self.events.count("unreached")
        if worker.failures >= _UNREACHABLE_AFTER:
            self.mark_silent(worker, "cannot be reached")

    def mark_silent(self, worker: WorkerHandle, how: str) -> None:
        """Mark `worker` as silent: a reply is long overdue, and `maintain` replaces it after `executor.timeout`."""
        if worker.silent_since is None and worker.number in self.handles:
            worker.silent_since = time.monotonic()
            after = f"it is replaced unless it answers within {self.settings.timeout:.0f} s (executor.timeout)"
            self.events.note("worker-silent", f"{worker.name} {how}: others do its shards meanwhile; {after}")

    def replace(self, worker: WorkerHandle, reason: str) -> None:
        """Kill the actor of `worker`; `maintain` starts another."""
        self.events.note("worker-lost", f"{worker.name} {reason}: its shards go to others, and another one starts")
        self._remove(worker)

    def describe_shortage(self) -> str:
        """Return why a run ends because too few workers replied."""
        found, least = len(self.ready()), self.settings.min_workers
        if found >= least:
            lack = f"none of {found} workers has answered"
        else:
            lack = (
                f"{found} of at least {least} workers are here" if found else "no worker is left, or none could start"
            )
        return f"{lack}, for {self.settings.deadline:g} s (executor.deadline): see `ray status` for what is missing"

    def close(self) -> None:
        """Kill all actors; may be called twice."""
        self._nodes.close()
        for worker in list(self.handles.values()):
            self._remove(worker)

    def responsive(self) -> Iterator[WorkerHandle]:
        """Return the workers that have replied to `info` and are not silent."""
        return (worker for worker in self.handles.values() if worker.info is not None and worker.silent_since is None)

    def _count_staying(self) -> int:
        return sum(not worker.leaving for worker in self.handles.values())

    def _check_shortage(self, now: float) -> None:
        ready, least = len(self.ready()), self.settings.min_workers
        compiling = sum(worker.compiling for worker in self.handles.values())
        self._short_since = (self._short_since or now) if ready + compiling < least else None
        if self._short_since is not None and now - self._short_since > self.settings.deadline:
            raise WorkersLost(self.describe_shortage())
        self._waiting_since = (self._waiting_since or now) if ready < least else None
        if self._waiting_since is not None and now - max(self._waiting_since, self._announced) > _ANNOUNCE_S:
            self._announced = now
            free, total = (ask().get("CPU", 0) for ask in (ray.available_resources, ray.cluster_resources))  # type: ignore[no-untyped-call]
            few = f"{ready} of at least {least} workers are ready, {compiling} are compiling"
            self.say(f"waiting for workers: {few}, {free:g} of the cluster's {total:g} CPUs are free")

    def _start(self) -> None:
        actor: Any = ray.remote(ShardActor).options(**self.options).remote(self.config, held_secrets())
        self.handles[self._started] = WorkerHandle(self._started, actor, actor.info.remote())
        self._started += 1

    def _remove(self, worker: WorkerHandle) -> None:
        del self.handles[worker.number]
        if not lost():
            ray.kill(worker.actor)

    def _handle_failed_start(self, worker: WorkerHandle, error: RayError) -> None:
        """Try again where the cause may pass (a missing file, a lost node); raise WorkersLost where it cannot."""
        reason = last_line(error)
        init_failed = isinstance(error, RayActorError) and error.actor_init_failed
        if self.training_started:
            self._retry_start_later(worker, reason if init_failed else describe_death(error))
            return
        self._failed_starts += 1
        may_pass = not init_failed or names_os_error(reason)
        if not may_pass or self._failed_starts >= _STARTS_PER_WORKER * self.settings.max_workers:
            raise WorkersLost(f"a worker cannot start: {reason}") from error
        self.replace(worker, f"could not start ({reason})" if init_failed else describe_death(error))

    def _retry_start_later(self, worker: WorkerHandle, reason: str) -> None:
        """Remove a worker that failed to start while others work, and start another after a growing pause."""
        self._failed_starts += 1
        pause = min(_MAX_START_PAUSE_S, 2.0 ** min(self._failed_starts, 6))
        self._start_from = time.monotonic() + pause
        retry = f"could not start ({reason}): another one is tried in {pause:.0f} s"
        self.events.note("worker-lost", f"{worker.name} {retry}")
        self._remove(worker)

    def _mark_leaving(self, nodes: dict[str, float]) -> None:
        """Mark the workers on `nodes`, which are about to leave: seconds left, by node id."""
        home = ray.get_runtime_context().get_node_id()
        if home in nodes and not self._home_leaves:
            self._home_leaves = True
            self.events.note(
                DRIVER_NODE_LEAVING, f"the driver's own node leaves in {nodes[home]:.0f} s: the state is kept now"
            )
        for worker in self.handles.values():
            if worker.info is not None and worker.info.node in nodes and not worker.leaving:
                worker.leaving = True
                left = f"{nodes[worker.info.node]:.0f} s"
                self.events.note("node-leaving", f"{worker.name} gets no more work, its node leaves in {left}")
