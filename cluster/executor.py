"""The executor on Ray: blocks of shards handed to workers as they come free, sums added in the order of the tree.

A step broadcasts one flat vector. `worker_pool.py` keeps the workers, `work_queue.py` the shards that are left, and
`dispatcher.py` gives shards to workers; here their results are added up.

Where gradients are large and several workers share a node that is not the driver's, what they found stays there until
it is added up, so that the driver receives as little from a node as its part of the tree allows.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.actor import Sums, Vector, unpack_gradient
from cluster.connection import within_messages
from cluster.dispatcher import CompletedBlock, Dispatcher, DispatchState
from cluster.events import Events
from cluster.worker_pool import IN_FLIGHT, WorkerPool
from metatrain.errors import WorkersLost
from metatrain.settings import Config
from metatrain.training.profiling import Meter, Usage, as_report
from metatrain.training.transport import widened
from metatrain.training.tree_sum import Block, TreeSum, flatten
from metatrain.types import MetaGradient, Params, Scores, Shard, ShardRequest, WorkerEvent

LARGEST_BLOCK = 1024
_ANSWER_S = 10.0
"""An actor that says what it spent does so at once, or is not waited for."""
_READY_S = 60.0


class RayExecutor:
    """`config.executor.workers` actors, inside `placement_group` where one is given (bundle 0 is the driver's).

    largest_block: of how many shards workers add up, at most; 1 sends each shard's sum by itself. say: told now and
    then while there are too few workers to begin or to go on.
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
        self._home = ray.get_runtime_context().get_node_id()
        self._tasks_done: Counter[int] = Counter()

    def map(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> Iterator[Scores]:
        waiting: dict[int, Sums] = {}
        following = 0
        for done in Dispatcher(
            self._state, request, self._broadcast(params), shards, 1, apart=False
        ).completed_blocks():
            assert done.found is not None, "scores do not travel apart"
            waiting[done.block.number] = done.found
            while following in waiting:
                values = waiting.pop(following).values
                yield Scores({name: torch.from_numpy(array.copy()) for name, array in values.items()})
                following += 1

    def sum(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> MetaGradient:
        began = time.monotonic()
        self._begin()
        vector = self._broadcast(params)
        dispatcher = Dispatcher(self._state, request, vector, shards, self._largest, self._is_worth_gathering(vector))
        summed = TreeSum(len(shards))
        while not dispatcher.done:
            held: dict[str, list[CompletedBlock]] = defaultdict(list)
            for done in dispatcher.completed_blocks():
                if done.found is None:
                    held[done.node].append(done)
                else:
                    self._add(summed, done.block, done.found)
                self._tasks_done[done.pid] += done.tasks
            for node, blocks_done in held.items():
                for lost in self._gather(node, blocks_done, summed, len(shards)):
                    self._tasks_done[lost.pid] -= lost.tasks
                    dispatcher.mark_lost(lost)
        tasks = sum(len(shard.indices) for shard in shards)
        self._pool.training_started = True
        self._events.record_step(request.step, tasks, time.monotonic() - began, len(self._pool.ready()))
        return unpack_gradient(summed.total(), params, tasks)

    def compile(self, shards: Sequence[Shard]) -> None:
        self._pool.compile(shards)
        self._pool.wait_until_ready(_READY_S)

    def events(self) -> list[WorkerEvent]:
        return self._events.take_lines()

    def health(self) -> Mapping[str, float]:
        """Workers that are given work, and what was counted so far."""
        counts = {kind: float(count) for kind, count in self._events.counts.items() if kind != "bytes"}
        return {"workers": float(len(self._pool.ready()))} | counts

    def report(self) -> Mapping[str, Any]:
        workers = {str(pid): done for pid, done in sorted(self._tasks_done.items()) if done}
        counts = self._events.counts
        told = {"workers": workers, "retries": counts["retries"], "events": dict(counts)}
        return told | as_report([self._meter.usage(), *self._usages()])

    def close(self) -> None:
        self._pool.close()

    def pids(self) -> list[int]:
        """The processes of the workers, once they are all ready."""
        self._pool.wait_until_ready(self._settings.deadline)
        return [worker.hello.pid for worker in self._pool.ready() if worker.hello is not None]

    def _begin(self) -> None:
        """Before the first step, enough workers are there."""
        if not self._pool.training_started:
            self._pool.wait_until_ready(0.0)

    def _broadcast(self, params: Params) -> Any:
        with self._meter.part("broadcast"):
            try:
                return broadcast(flatten(params) if params else np.empty(0, dtype=np.float32))
            except RayError as error:
                reason = " ".join(str(error).split())[:200]
                raise WorkersLost(f"Ray cannot take the parameters ({reason}): see `ray status`") from error

    def _is_worth_gathering(self, vector: Any) -> bool:
        """Large gradients, and two workers or more on a node that is not the driver's."""
        nodes = Counter(worker.hello.node for worker in self._pool.ready() if worker.hello is not None)
        return isinstance(vector, ray.ObjectRef) and any(n > 1 for node, n in nodes.items() if node != self._home)

    def _gather(
        self, node: str, blocks_done: Sequence[CompletedBlock], summed: TreeSum, leaves: int
    ) -> list[CompletedBlock]:
        """Adds what stayed on `node`, added up there first; what was lost before it could be."""
        with self._meter.part("gather"):
            # Whoever owes an answer still would let this one wait too.
            near = [s for s in self._pool.ready() if s.hello is not None and s.hello.node == node and s.calls == 0]
            if node != self._home and near and len(blocks_done) > 1:
                blocks, parts = [a.block for a in blocks_done], [a.apart for a in blocks_done]
                adding = near[0].actor.add_up.remote(leaves, blocks, *parts)
                with suppress(RayError):  # whatever it was, what is still there is fetched one by one
                    for block, found in ray.get(adding, timeout=self._settings.timeout).items():
                        self._add(summed, block, found)
                    return []
            return [done for done in blocks_done if not self._fetched(done, summed)]

    def _fetched(self, done: CompletedBlock, summed: TreeSum) -> bool:
        try:
            found = ray.get(done.apart, timeout=self._settings.timeout)
        except RayError:
            return False
        self._add(summed, done.block, found)
        return True

    def _add(self, summed: TreeSum, block: Block, found: Sums) -> None:
        with self._meter.part("add"):
            self._events.count("bytes", found.vector.nbytes)
            whole = found._replace(vector=widened(found.vector, self._settings.gradients))
            summed.add(block.number, whole, block.level)

    def _usages(self) -> Iterator[Usage]:
        """Of the workers that are there now; what a lost one spent is lost with it."""
        for worker in list(self._pool.responsive()):
            with suppress(RayError):
                yield ray.get(worker.actor.usage.remote(), timeout=_ANSWER_S)


def broadcast(vector: Vector) -> Any:
    """What is handed to every call: a small vector as it is, within the message, a large one put once for all."""
    return vector if vector.nbytes < within_messages() else ray.put(vector)


def _actor_options(config: Config, placement_group: PlacementGroup | None) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": config.executor.gpus_per_worker}
    if config.executor.gpus_per_worker:
        # One thread samples while the other waits for the GPU. On a CPU they would contend for the one core: the work
        # of a step took a tenth longer, for half the idling.
        options["max_concurrency"] = IN_FLIGHT
    if placement_group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placement_group)
    return options
