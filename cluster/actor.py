"""The Ray actor: a `Worker` in a process of its own, spoken to in vectors."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from metatrain.settings import Config
from metatrain.training.profiling import Usage
from metatrain.training.transport import narrowed, widened
from metatrain.training.tree_sum import Block, TreeSum, flatten, layout_of, unflatten
from metatrain.training.worker import Worker, device_for
from metatrain.types import MetaGradient, Params, Scores, Shard, ShardRequest

Vector = np.ndarray[Any, Any]


class Hello(NamedTuple):
    """Who an actor is."""

    pid: int
    node: str
    host: str


class Ticket(NamedTuple):
    """Which work a call is: of all that a run ever asks for, one. `attempt` counts the calls for this block."""

    step: int
    block: Block
    attempt: int


class Sums(NamedTuple):
    """What was found of a block of shards, as vectors, which add up as they are."""

    vector: Vector
    """The gradients, flat in name order; empty for scores."""
    values: dict[str, Vector]
    """Metric sums, or scores by name."""


class Answer(NamedTuple):
    """What an actor sends back for a block: which work it was, who did it in what time, and what was found.

    `parts`: seconds by part of the work. `found` is None where it travels apart.
    """

    ticket: Ticket
    pid: int
    node: str
    parts: dict[str, float]
    seconds: float
    found: Sums | None


class ShardActor:
    """Samples its own shards and adapts to them. Stateless between calls: any actor can answer for any shard.

    Ray restarts nothing by itself (its default): the driver replaces a lost actor, so that it knows of every retry.
    """

    def __init__(self, config: Config) -> None:
        self._worker = Worker(config, device_for(config.executor.gpus_per_worker))
        self._layout = layout_of(self._worker.initial())
        self._gradients = config.executor.gradients
        self._computing = Lock()
        self._node = ray.get_runtime_context().get_node_id()

    def hello(self) -> Hello:
        """Who this is; answering it also says that the actor is ready."""
        return Hello(os.getpid(), self._node, socket.gethostname())

    def usage(self) -> Usage:
        """What this process spent so far."""
        return self._worker.meter.usage()

    def compile(self, shards: Sequence[Shard]) -> None:
        """Has the worker compile what shards of these sizes need."""
        with self._computing:
            self._worker.compile(shards)

    def compute(self, ticket: Ticket, request: ShardRequest, vector: Vector, shards: Sequence[Shard]) -> Answer:
        """The sum over the shards of a block, at the parameters of `vector`, along the block's part of the tree.

        With a GPU two threads compute: one samples ahead.
        """
        before = self._worker.meter.usage().seconds
        began = time.perf_counter()
        summed = TreeSum(len(shards))
        for number, shard in enumerate(shards):
            tasks = self._worker.tasks(request, shard)
            with self._computing:
                params = unflatten(vector, self._layout) if len(vector) else {}
                summed.add(number, pack(self._worker.compute(request, params, shard, tasks)))
        found = summed.total()
        if len(shards) == 1 and request.kind == "gradient":
            found = found._replace(vector=narrowed(found.vector, self._gradients))
        seconds = time.perf_counter() - began
        parts = _since(before, self._worker.meter.usage().seconds)
        return Answer(ticket, os.getpid(), self._node, parts, seconds, found)

    def compute_apart(
        self, ticket: Ticket, request: ShardRequest, vector: Vector, shards: Sequence[Shard]
    ) -> tuple[Answer, Sums | None]:
        """The same as two objects, so that what was found can stay on this node until it is added up with others'."""
        answer = self.compute(ticket, request, vector, shards)
        return answer._replace(found=None), answer.found

    def add_up(self, leaves: int, blocks: Sequence[Block], *found: Sums) -> dict[Block, Sums]:
        """What was found of `blocks` on this node, in as few as they add up to. Nothing is narrow after."""
        summed = TreeSum(leaves)
        for block, part in zip(blocks, found, strict=True):
            summed.add(block.number, part._replace(vector=widened(part.vector, self._gradients)), block.level)
        return summed.parts()


def pack(result: MetaGradient | Scores) -> Sums:
    """A worker's result as vectors."""
    if isinstance(result, Scores):
        return Sums(np.empty(0), {name: value.numpy() for name, value in result.values.items()})
    return Sums(flatten(result.grads), {name: value.numpy() for name, value in result.metrics.items()})


def unpack_gradient(total: Sums, params: Params, tasks: int) -> MetaGradient:
    """The meta-gradient of `tasks` tasks that the sum of their answers carries, for parameters laid out as `params`."""
    metrics = {name: torch.from_numpy(np.array(array)) for name, array in total.values.items()}
    return MetaGradient(unflatten(total.vector, layout_of(params)), metrics, torch.tensor(tasks))


def _since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {part: seconds - before.get(part, 0.0) for part, seconds in after.items()}
