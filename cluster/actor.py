"""The Ray actor: a `Worker` in a process of its own, spoken to in vectors."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from metatrain.reduction import flatten, layout_of, unflatten
from metatrain.settings import Config
from metatrain.types import Job, MetaGradient, Params, Scores, Shard
from metatrain.usage import Usage
from metatrain.worker import Worker, device_for

Vector = np.ndarray[Any, Any]


class Answer(NamedTuple):
    """What an actor sends back for one shard: who it was, and flat vectors of what it found."""

    pid: int
    vector: Vector
    """The gradients, flat in name order; empty for scores."""
    state: dict[str, Vector]
    values: dict[str, Vector]
    """Metric sums, or scores by name."""


class ShardActor:
    """Samples its own shards and adapts to them. Stateless between calls: any actor can answer for any shard.

    Ray restarts nothing by itself (its default): the driver replaces a lost actor, so that it knows of every retry.
    """

    def __init__(self, config: Config) -> None:
        self._worker = Worker(config, device_for(config.executor.gpus_per_worker))
        self._layout = layout_of(self._worker.initial())

    def pid(self) -> int:
        """This process, for the report of who did what; answering it also says that the actor is ready."""
        return os.getpid()

    def usage(self) -> Usage:
        """What this process spent so far."""
        return self._worker.meter.usage()

    def compile(self, shards: Sequence[Shard]) -> None:
        """Has the worker compile what shards of these sizes need."""
        self._worker.compile(shards)

    def compute(self, job: Job, vector: Vector, shard: Shard) -> Answer:
        """The answer for one shard at the parameters of `vector`."""
        params = unflatten(vector, self._layout) if len(vector) else {}
        return pack(self._worker.compute(job, params, shard))


def pack(result: MetaGradient | Scores) -> Answer:
    """A worker's result as an Answer."""
    if isinstance(result, Scores):
        values = {name: value.numpy() for name, value in result.values.items()}
        return Answer(os.getpid(), np.empty(0), {}, values)
    state = {name: value.numpy() for name, value in result.state.items()}
    metrics = {name: value.numpy() for name, value in result.metrics.items()}
    return Answer(os.getpid(), flatten(result.grads), state, metrics)


def unpack_gradient(answer: Answer, params: Params, shard: Shard) -> MetaGradient:
    """The meta-gradient that `answer` carries, for parameters laid out as `params`."""

    def tensors(arrays: dict[str, Vector]) -> Params:
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    grads = unflatten(answer.vector, layout_of(params))
    return MetaGradient(grads, tensors(answer.state), tensors(answer.values), torch.tensor(len(shard.indices)))
