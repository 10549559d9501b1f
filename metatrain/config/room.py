"""Check that memory holds what a configuration asks for: roughly before a worker is built, then by prediction."""

import math
import os

import torch

from metatrain.models import Custom, Torchvision
from metatrain.settings import Config
from metatrain.training.memory import Memory, total_bytes
from metatrain.training.worker import Worker
from metatrain.validation import require
from tasks.described_shape import TaskShape
from tasks.opening import open_tasks
from tasks.types import Shapes, Split, shapes_in

_COPIES = 4
"""A parameter is held as itself, a gradient and two moments of Adam; an example at least as itself, in a batch, and as
activations forwards and backwards.
"""


def check_memory(config: Config) -> None:
    """Check that this machine's memory holds the parameters and the tasks of a shard. ValueError: it is too small."""
    memory = machine_bytes()
    tasks, evaluation = config.tasks, config.evaluation
    shapes: tuple[tuple[Split, TaskShape, int], ...] = (
        ("train", tasks.train, config.outer.tasks_per_step),
        ("test", tasks.test, max(evaluation.tasks, evaluation.validation_tasks)),
    )
    for part, shape, count in shapes:
        spec = open_tasks(tasks.source, config.names.tasks, part, shape, 0).spec
        together = min(config.executor.shard_size, count)
        support, query = shape.most_examples
        sizes = support * _size_of(spec.support_x) + query * _size_of(spec.x)
        needed = _COPIES * together * sizes * torch.get_default_dtype().itemsize
        require(
            needed <= memory,
            f"tasks.{part}: {together} tasks of {support} support and {query} query examples need {_size(needed)} of "
            f"memory; here are {_size(memory)}: lower tasks.{part}.shots or .queries, or executor.shard_size",
        )
        if part == "train" and not isinstance(config.model, (Custom, Torchvision)):
            with torch.device("meta"):
                body = config.model.build(spec)
            needed = _COPIES * sum(p.numel() * p.element_size() for p in body.parameters())
            require(
                needed <= memory,
                f"model: its parameters, gradients and the optimizer's state need {_size(needed)}, and this machine's "
                f"memory is {_size(memory)}: lower model.width or its like",
            )


def _size_of(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes_in(shapes))


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count < 1e15 else f"{count / 1e15:.3g} million GB"


def machine_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def workers_here(config: Config) -> int:
    """Return how many workers share this machine's memory: 0 where they are on a cluster that is joined."""
    executor = config.executor
    if not executor.on_ray:
        return 1
    joined = executor.address is not None or "RAY_ADDRESS" in os.environ
    return 0 if joined else executor.max_workers


def require_room(worker: Worker, predicted: Memory) -> None:
    """Check that this machine's memory holds what its workers are predicted to use. ValueError: the remedy."""
    config = worker.config
    count, each = workers_here(config), total_bytes(predicted, config.executor.has_driver) - predicted.process
    if config.executor.gpus_per_worker > 0:  # tensors are on its GPU, whose size this machine may not know
        each = 0
    # Libraries, most of what a process holds before its first gradient, are in memory once for all.
    needed, memory = predicted.process + count * each, machine_bytes()
    remedies: list[str] = []
    if config.engine.activation_checkpointing == "off":
        remedies.append("set engine.activation_checkpointing=on")
    if worker.engine.vectorize == "vmap":
        remedies.append("set engine.chunk to fewer tasks")
    if config.executor.shard_size > 1:
        remedies.append("lower executor.shard_size")
    if count > 1:
        remedies.append("lower executor.workers")
    remedy = ", or ".join(remedies) or "lower model.width or its like"
    need = f"{count} {'worker needs' if count == 1 else 'workers need'} {_size(needed)} of memory by prediction"
    require(needed <= memory, f"model: {need}, and this machine has {_size(memory)}: {remedy}")
