"""Compute blocks of shards in a Ray actor, which exchanges parameters and sums as flat vectors."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metatrain.algorithms.updates import own_params
from metatrain.errors import TaskFailed
from metatrain.job_secrets import adopt_secrets
from metatrain.settings import Config
from metatrain.training.devices import device_for
from metatrain.training.profiling import Usage
from metatrain.training.tree_sum import Block, TreeSum, flatten, layout_of, layout_of_call, unflatten
from metatrain.training.worker import Worker
from metatrain.types import MetaGradient, Params, Scores, Shard, ShardRequest
from tasks.types import Split

Vector = np.ndarray[Any, Any]

_AHEAD_BYTES = 64 << 20
"""Size of tasks sampled ahead at which a worker samples no more of them."""


class ActorInfo(NamedTuple):
    """Where an actor runs."""

    pid: int
    node: str
    host: str


class CallId(NamedTuple):
    """Identifies one call of a run. `attempt` numbers the calls of a step."""

    step: int
    block: Block
    attempt: int


class BlockSum(NamedTuple):
    """The sum over a block of shards, as arrays that can be added to another block's."""

    vector: Vector
    """The gradients, flat in name order; empty for scores."""
    values: dict[str, Vector]
    """Metric sums, or scores by name."""


class BlockReply(NamedTuple):
    """An actor's reply to one call: who computed the block, the seconds that this took, and the sum.

    parts: the seconds of the process since its last reply, by part; tasks sampled ahead are among them.
    """

    call: CallId
    pid: int
    parts: dict[str, float]
    seconds: float
    total: BlockSum


class ShardActor:
    """Sample tasks and adapt to them. Stateless between calls: any actor can compute any shard.

    Ray does not restart it (Ray's default): the driver replaces a lost actor, so that it knows of every retry.
    """

    def __init__(self, config: Config, secrets: Mapping[str, str] | None = None) -> None:
        """Build the worker. secrets: variables of a job that Ray does not hand over (`metatrain.job_secrets`)."""
        adopt_secrets(secrets or {})
        self._worker = Worker(config, device_for(config.executor.gpus_per_worker))
        self._layout = layout_of(self._worker.initial())
        self._computing = Lock()
        self._ahead: dict[tuple[Split, tuple[int, ...]], Any] = {}
        """Tasks of training shards that were sampled before they were asked for, by split and indices."""
        self._reported: Mapping[str, float] = self._worker.meter.usage().seconds

    def info(self) -> ActorInfo:
        """Return where this actor runs; a reply also shows that the actor is ready."""
        return ActorInfo(os.getpid(), ray.get_runtime_context().get_node_id(), socket.gethostname())

    def usage(self) -> Usage:
        """Return the seconds and the memory that this process has used so far."""
        return self._worker.meter.usage()

    def compile(self, shards: Sequence[Shard]) -> None:
        """Compile what shards of these sizes need."""
        with self._computing:
            self._worker.compile(shards)

    def sample(self, request: ShardRequest, shards: Sequence[Shard]) -> None:
        """Sample the tasks of training shards that will likely be asked for next, and keep them until then.

        Those that were not asked for since the last time are forgotten, so that at most _AHEAD_BYTES and one shard are
        kept. A task that fails is left to the call that needs it.
        """
        self._ahead, size = {}, 0
        for shard in shards:
            if size < _AHEAD_BYTES:
                with suppress(TaskFailed):
                    tasks = self._worker.tasks(request, shard)
                    self._ahead[request.split, shard.indices] = tasks
                    size += sum(leaf.nbytes for leaf in tree_leaves(tasks) if isinstance(leaf, Tensor))

    def compute(self, call: CallId, request: ShardRequest, vector: Vector, shards: Sequence[Shard]) -> BlockReply:
        """Add up the shards of a block, at the parameters `vector`, along the block's part of the summation tree.

        On a GPU two threads call this: one samples tasks while the other computes.
        """
        began = time.perf_counter()
        # A vector from Ray's object store is read-only and is copied when it is unpacked: once for all shards.
        params = self._worker.to_device(
            unflatten(vector, layout_of_call(self._layout, request.sent)) if len(vector) else {}
        )
        total = TreeSum(len(shards))
        for number, shard in enumerate(shards):
            tasks = self._take_sampled(request, shard) or self._worker.tasks(request, shard)
            with self._computing:
                total.add(number, pack(self._worker.compute(request, params, shard, tasks)))
        before, self._reported = self._reported, self._worker.meter.usage().seconds
        parts = _difference(before, self._reported)
        return BlockReply(call, os.getpid(), parts, time.perf_counter() - began, total.total())

    def _take_sampled(self, request: ShardRequest, shard: Shard) -> Any:
        """Return the tasks of a shard if they were sampled ahead, once; else None."""
        return self._ahead.pop((request.split, shard.indices), None) if request.kind == "gradient" else None


def pack(result: MetaGradient | Scores) -> BlockSum:
    """Convert a worker's result to arrays."""
    if isinstance(result, Scores):
        return BlockSum(np.empty(0), {name: value.numpy() for name, value in result.values.items()})
    return BlockSum(flatten(result.grads), {name: value.numpy() for name, value in result.metrics.items()})


def unpack_gradient(total: BlockSum, params: Params, tasks: int) -> MetaGradient:
    """Convert the sum over `tasks` tasks to a meta-gradient for parameters with the names and shapes of `params`.

    Those sent beside a run's own have none; of a call for metrics alone no parameter has.
    """
    metrics = {name: torch.from_numpy(np.array(array)) for name, array in total.values.items()}
    layout = layout_of(own_params(params)) if total.vector.size else {}
    return MetaGradient(unflatten(total.vector, layout), metrics, torch.tensor(tasks))


def _difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {part: seconds - before.get(part, 0.0) for part, seconds in after.items()}
