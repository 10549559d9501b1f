"""Compute blocks of shards in a Ray actor, which exchanges parameters and sums as flat vectors."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from metatrain.job_secrets import adopt_secrets
from metatrain.settings import Config
from metatrain.training.devices import device_for
from metatrain.training.profiling import Usage
from metatrain.training.tree_sum import Block, TreeSum, flatten, layout_of, unflatten
from metatrain.training.worker import Worker
from metatrain.types import MetaGradient, Params, Scores, Shard, ShardRequest

Vector = np.ndarray[Any, Any]


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
    """An actor's reply to one call: who computed the block, the seconds of the call and of its parts, and the sum."""

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

    def compute(self, call: CallId, request: ShardRequest, vector: Vector, shards: Sequence[Shard]) -> BlockReply:
        """Add up the shards of a block, at the parameters `vector`, along the block's part of the summation tree.

        On a GPU two threads call this: one samples tasks while the other computes.
        """
        before = self._worker.meter.usage().seconds
        began = time.perf_counter()
        # A vector from Ray's object store is read-only and is copied when it is unpacked: once for all shards.
        params = self._worker.to_device(unflatten(vector, self._layout) if len(vector) else {})
        total = TreeSum(len(shards))
        for number, shard in enumerate(shards):
            tasks = self._worker.tasks(request, shard)
            with self._computing:
                total.add(number, pack(self._worker.compute(request, params, shard, tasks)))
        parts = _difference(before, self._worker.meter.usage().seconds)
        return BlockReply(call, os.getpid(), parts, time.perf_counter() - began, total.total())


def pack(result: MetaGradient | Scores) -> BlockSum:
    """Convert a worker's result to arrays."""
    if isinstance(result, Scores):
        return BlockSum(np.empty(0), {name: value.numpy() for name, value in result.values.items()})
    return BlockSum(flatten(result.grads), {name: value.numpy() for name, value in result.metrics.items()})


def unpack_gradient(total: BlockSum, params: Params, tasks: int) -> MetaGradient:
    """Convert the sum over `tasks` tasks to a meta-gradient for parameters with the names and shapes of `params`."""
    metrics = {name: torch.from_numpy(np.array(array)) for name, array in total.values.items()}
    return MetaGradient(unflatten(total.vector, layout_of(params)), metrics, torch.tensor(tasks))


def _difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {part: seconds - before.get(part, 0.0) for part, seconds in after.items()}
