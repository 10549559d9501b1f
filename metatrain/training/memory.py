"""Predict the memory of a worker before it trains: from one gradient of tensors that have shapes and no values.

Gaps of the allocator and what libraries of convolutions copy come on top.
"""

import copy
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from metatrain.engine import Engine, most_kept
from metatrain.models import Model
from metatrain.models.dropout import NO_NOISE
from metatrain.training.profiling import peak_mib
from metatrain.training.worker import Worker, with_inner_steps
from metatrain.types import Context, Params, Shard, ShardRequest
from tasks.plugins import USER_CODE_ERRORS, describe_error

MIB = 2**20
MEMORY = "memory"
"""The kind of event that says what was predicted and what was used."""
_META = torch.device("meta")
_STATE = {"adam": 2, "adamw": 2, "sgd": 0}
"""Tensors of a parameter's size that an optimiser keeps; sgd with momentum keeps one."""
_LOOPED = 2
"""Tasks of a loop over tasks: of the second on, the sum of those before is kept too."""


class Memory(NamedTuple):
    """Bytes of one worker, by part; `driver` is in the process of the driver, which is the worker's if there is one."""

    process: int
    """What the process holds before its first gradient: Python, torch and what the task source has read."""
    parameters: int
    """θ, as received and as aligned, and the sums of gradients that wait for others."""
    driver: int
    """θ, its gradient and the optimiser's state."""
    tasks: int
    """Tasks of the shard that is computed and of the next one."""
    fast_weights: int
    """Fast weights of every inner step, of the tasks that are computed at once."""
    graph: int
    """Activations and gradients of one inner step or of the query loss, of these tasks."""


class Unpredictable(ValueError):
    """The memory of a gradient is unknown without its values, as of code that branches on them."""


def predict_memory(worker: Worker) -> Memory:
    """Return the memory of one worker that trains `worker.config`. Raises Unpredictable."""
    config, params = worker.config, worker.initial()
    count = min(config.executor.shard_size, config.outer.tasks_per_step)
    tasks = _largest_batch(worker, count)
    together = min(worker.engine.chunk or count, count) if worker.engine.vectorize == "vmap" else min(_LOOPED, count)
    steps = getattr(worker.algorithm, "inner_steps", 1)
    one, *two = (_peak_of_gradient(worker, params, tasks, together, k) for k in range(1, 1 + min(steps, 2)))
    each = max(0, two[0] - one) if two else 0
    kept = most_kept(steps) if hasattr(worker.algorithm, "inner") else steps
    theta = sum(value.nbytes for value in params.values())
    shards = -(-config.outer.tasks_per_step // config.executor.shard_size)
    ahead = min(2, shards) * count
    return Memory(
        process=resident_bytes(),
        parameters=(2 + max(0, shards - 1).bit_length()) * theta,
        driver=(2 + _optimizer_state(config.outer.optimizer, config.outer.momentum)) * theta,
        tasks=ahead * sum(leaf[0].nbytes for leaf in _tensors(tasks)),
        fast_weights=each * (kept - 1),
        graph=one,
    )


def total_bytes(memory: Memory, apart: bool) -> int:
    """Return the bytes of the worker's process; `apart`: the driver is another process."""
    return sum(memory) - (memory.driver if apart else 0)


def describe_memory(memory: Memory, apart: bool) -> str:
    """Return the total and its parts in MiB, in one line."""
    names = {name.replace("_", " "): value for name, value in memory._asdict().items()}
    if apart:
        names.pop("driver")
    parts = ", ".join(f"{name} {value / MIB:.0f}" for name, value in names.items())
    return f"{total_bytes(memory, apart) / MIB:.0f} MiB ({parts})"


def compare_memory(predicted: Memory | None, apart: bool, used: Mapping[str, float]) -> str:
    """Return the prediction beside what each process, by its id, has used at most in MiB. Called by the driver."""
    driver = str(os.getpid()) if apart else None
    who = {pid: "the driver" if pid == driver else f"worker {pid}" for pid in used}
    most = ", ".join(f"{mib:.0f} MiB by {who[pid]}" for pid, mib in used.items())
    before = "not predicted" if predicted is None else f"predicted {describe_memory(predicted, apart)}"
    return f"{before}; used at most {most or 'an unknown number'}"


def resident_bytes() -> int:
    """Return the resident memory of this process now; where the system does not say, its peak."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(peak_mib() * MIB)


def _optimizer_state(name: str, momentum: float) -> int:
    return _STATE[name] or int(momentum > 0)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _largest_batch(worker: Worker, count: int) -> Any:
    """Return training tasks of one size, the largest among the first `count`."""
    batches = worker.tasks(ShardRequest("gradient", "train", 0), Shard(0, tuple(range(count))))
    return max((batch.tasks for batch in batches), key=lambda tasks: sum(leaf[0].nbytes for leaf in _tensors(tasks)))


def _peak_of_gradient(worker: Worker, params: Params, tasks: Any, count: int, inner_steps: int) -> int:
    """Return the most bytes alive at once in the meta-gradient of `count` tasks of this size, above θ and the tasks."""

    def shaped(leaf: Tensor) -> Tensor:
        return torch.empty((count, *leaf.shape[1:]), dtype=leaf.dtype, device=_META)

    like = tree_map(shaped, tasks)
    model = _without_values(worker.model.for_tasks(worker.distribution("train").spec, params))
    algorithm: Any = worker.algorithm
    if hasattr(algorithm, "inner_steps"):
        algorithm = with_inner_steps(algorithm, inner_steps)
    engine = Engine(worker.engine.vectorize, chunk=worker.engine.chunk)
    noise = torch.full((count,), NO_NOISE, device=_META)
    theta = {name: value.to(_META) for name, value in params.items()}
    with _Alive() as alive:
        try:
            algorithm.meta_gradient(model, theta, like, Context(torch.tensor(0, device=_META), noise), engine)
        except USER_CODE_ERRORS as error:
            raise Unpredictable(f"it cannot be computed without values ({describe_error(error)})") from error
    return int(alive.most)


def _without_values(model: Model) -> Model:
    """Return a copy of `model` whose parameters and buffers have shapes alone."""
    parts = [part for part in (model.body, model.head) if part is not None]
    known: dict[int, Any] = {id(p): nn.Parameter(p.to(_META)) for part in parts for p in part.parameters()}
    known |= {id(buffer): buffer.to(_META) for part in parts for buffer in part.buffers()}
    return copy.deepcopy(model, known)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the tensors that are made within this context, and the most that are alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in _tensors(found):
            self._count(tensor)
        return found

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
