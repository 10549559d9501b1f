"""The Ray actor: a `Worker` in a process of its own, spoken to in vectors."""

import os
from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch

from metatrain.reduction import flatten, layout_of, unflatten
from metatrain.settings import Config
from metatrain.types import Job, MetaGradient, Params, Scores, Shard
from metatrain.usage import Usage
from metatrain.worker import Worker, device_for

Vector = np.ndarray[Any, Any]


class Sums(NamedTuple):
    """What was found of one shard, as vectors, which add up as they are."""

    vector: Vector
    """The gradients, flat in name order; empty for scores."""
    state: dict[str, Vector]
    values: dict[str, Vector]
    """Metric sums, or scores by name."""


class Answer(NamedTuple):
    """What an actor sends back for one shard: who it was, and what it found."""

    pid: int
    found: Sums


class ShardActor:
    """Samples its own shards and adapts to them. Stateless between calls: any actor can answer for any shard.

    Ray restarts nothing by itself (its default): the driver replaces a lost actor, so that it knows of every retry.
    """

    def __init__(self, config: Config) -> None:
        self._worker = Worker(config, device_for(config.executor.gpus_per_worker))
        self._layout = layout_of(self._worker.initial())
        self._computing = Lock()

    def pid(self) -> int:
        """This process, for the report of who did what; answering it also says that the actor is ready."""
        return os.getpid()

    def usage(self) -> Usage:
        """What this process spent so far."""
        return self._worker.meter.usage()

    def compile(self, shards: Sequence[Shard]) -> None:
        """Has the worker compile what shards of these sizes need."""
        with self._computing:
            self._worker.compile(shards)

    def compute(self, job: Job, vector: Vector, shard: Shard) -> Answer:
        """The answer for one shard at the parameters of `vector`. With a GPU two threads do: one samples ahead."""
        tasks = self._worker.tasks(job, shard)
        with self._computing:
            params = unflatten(vector, self._layout) if len(vector) else {}
            return pack(self._worker.compute(job, params, shard, tasks))


def pack(result: MetaGradient | Scores) -> Answer:
    """A worker's result as an Answer."""
    if isinstance(result, Scores):
        values = {name: value.numpy() for name, value in result.values.items()}
        return Answer(os.getpid(), Sums(np.empty(0), {}, values))
    state = {name: value.numpy() for name, value in result.state.items()}
    metrics = {name: value.numpy() for name, value in result.metrics.items()}
    return Answer(os.getpid(), Sums(flatten(result.grads), state, metrics))


def unpack_gradient(total: Sums, params: Params, tasks: int) -> MetaGradient:
    """The meta-gradient of `tasks` tasks that the sum of their answers carries, for parameters laid out as `params`."""

    def tensors(arrays: dict[str, Vector]) -> Params:
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    grads = unflatten(total.vector, layout_of(params))
    return MetaGradient(grads, tensors(total.state), tensors(total.values), torch.tensor(tasks))
