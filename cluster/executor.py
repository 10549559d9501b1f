"""Compute shards on Ray: blocks go to workers as these become free, sums are added in the order of the tree.

Each step broadcasts one flat vector. `worker_pool.py` keeps the workers, `work_queue.py` the shards that are left, and
`dispatcher.py` gives shards to workers; here their sums are added.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import ray
import torch
from ray._raylet import IMPLICIT_RESOURCE_PREFIX  # type: ignore[attr-defined]  # not public; Ray Serve uses it too
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.actor import BlockSum, Vector, unpack_gradient
from cluster.connection import check_ray, max_inline_bytes
from cluster.dispatcher import Dispatcher, DispatchState
from cluster.events import Events
from cluster.worker_pool import IN_FLIGHT, WorkerPool
from metatrain.errors import WorkersLost
from metatrain.settings import Config
from metatrain.training.profiling import Meter, Usage, as_report
from metatrain.training.tree_sum import TreeSum, flatten
from metatrain.types import MetaGradient, Params, Scores, Shard, ShardRequest, WorkerEvent

LARGEST_BLOCK = 1024
_USAGE_TIMEOUT_S = 10.0
"""A worker that does not report its usage in time is left out of the report."""
_READY_S = 60.0
_RESOURCE_UNITS = 10_000
"""Parts of a resource that Ray counts."""


class RayExecutor:
    """Run `config.executor.workers` actors, inside `placement_group` where one is given (bundle 0 is the driver's).

    largest_block: the most shards that a worker adds up before it replies; 1 sends the sum of each shard. say: receives
    a line now and then while there are too few workers.
    """

    def __init__(
        self,
        config: Config,
        placement_group: PlacementGroup | None = None,
        largest_block: int = LARGEST_BLOCK,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._settings = config.executor
        self._largest = largest_block
        self._events, self._meter = Events(), Meter()
        options = _actor_options(config, placement_group)
        self._pool = WorkerPool(config.executor, ray.put(config), options, self._events, say=say)
        self._pool.maintain()
        self._state = DispatchState(self._pool, self._events, self._meter)
        self._tasks_done: Counter[int] = Counter()

    def map(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> Iterator[Scores]:
        waiting: dict[int, BlockSum] = {}
        following = 0
        for done in Dispatcher(self._state, request, self._broadcast(params), shards, 1).completed_blocks():
            waiting[done.block.number] = done.total
            while following in waiting:
                values = waiting.pop(following).values
                yield Scores({name: torch.from_numpy(array.copy()) for name, array in values.items()})
                following += 1

    def sum(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> MetaGradient:
        began = time.monotonic()
        if not self._pool.training_started:
            self._pool.wait_until_ready(0.0)
        total = TreeSum(len(shards))
        dispatcher = Dispatcher(self._state, request, self._broadcast(params), shards, self._largest)
        for done in dispatcher.completed_blocks():
            with self._meter.part("add"):
                self._events.count("bytes", done.total.vector.nbytes)
                total.add(done.block.number, done.total, done.block.level)
            if request.counts:
                self._tasks_done[done.pid] += done.tasks
        tasks = sum(len(shard.indices) for shard in shards)
        self._pool.training_started = True
        if request.counts:
            self._events.record_step(request.step, tasks, time.monotonic() - began, len(self._pool.ready()))
        return unpack_gradient(total.total(), params, tasks)

    def compile(self, shards: Sequence[Shard]) -> None:
        self._pool.compile(shards)
        self._pool.wait_until_ready(_READY_S)

    def events(self) -> list[WorkerEvent]:
        return self._events.take_lines()

    def health(self) -> Mapping[str, float]:
        """Return the number of workers in use and the counts of events so far."""
        counts = {kind: float(count) for kind, count in self._events.counts.items() if kind != "bytes"}
        return {"workers": float(len(self._pool.ready()))} | counts

    def report(self) -> Mapping[str, Any]:
        workers = {str(pid): done for pid, done in sorted(self._tasks_done.items()) if done}
        counts = self._events.counts
        work = {"workers": workers, "retries": counts["retries"], "events": dict(counts)}
        return work | as_report([self._meter.usage(), *self._usages()])

    def close(self) -> None:
        self._pool.close()

    def pids(self) -> list[int]:
        """Return the process ids of the workers, once all of them are ready."""
        self._pool.wait_until_ready(self._settings.deadline)
        return [worker.info.pid for worker in self._pool.ready() if worker.info is not None]

    def _broadcast(self, params: Params) -> Any:
        check_ray()
        with self._meter.part("broadcast"):
            try:
                return broadcast(flatten(params) if params else np.empty(0, dtype=np.float32))
            except RayError as error:
                reason = " ".join(str(error).split())[:200]
                raise WorkersLost(f"Ray cannot take the parameters ({reason}): see `ray status`") from error

    def _usages(self) -> Iterator[Usage]:
        """Yield the usage of the present workers; that of lost ones is lost."""
        for worker in list(self._pool.responsive()):
            with suppress(RayError):
                yield ray.get(worker.actor.usage.remote(), timeout=_USAGE_TIMEOUT_S)


def broadcast(vector: Vector) -> Any:
    """Return what every call receives: a small vector itself, sent in the message, or a reference to a large one."""
    return vector if vector.nbytes < max_inline_bytes() else ray.put(vector)


def _actor_options(config: Config, placement_group: PlacementGroup | None) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": config.executor.gpus_per_worker}
    options["enable_task_events"] = False  # Ray's head keeps 14 KiB a step of them, for its lists of tasks
    if config.executor.gpus_per_worker:
        # One thread samples while the other waits for the GPU. On a CPU they would contend for the one core: the work
        # of a step took a tenth longer, for half the idling.
        options["max_concurrency"] = IN_FLIGHT
    if (most := config.executor.workers_per_node) is not None:
        options["resources"] = {_own_resource(): (_RESOURCE_UNITS // most) / _RESOURCE_UNITS}
    if placement_group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placement_group)
    return options


def _own_resource() -> str:
    """Return the name of a resource of this run's own, of which Ray lets every node have one.

    Ray Serve limits replicas by it; unlike a placement group it holds for workers that come later, and on nodes that an
    autoscaler adds.
    """
    return f"{IMPLICIT_RESOURCE_PREFIX}metatrain-{uuid.uuid4().hex}"
