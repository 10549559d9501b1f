"""Define the sections `engine` and `executor` of a configuration: how tasks are computed, and where."""

from dataclasses import dataclass
from typing import Literal

from metatrain.validation import require, require_at_most, require_not_negative, require_positive


@dataclass(frozen=True)
class EngineSettings:
    """How inner loops are computed. `auto` is resolved once, on the driver, and stored in the run.

    compile: compile the inner loop, which takes about half a minute once. chunk: the most tasks one vmap call takes.
    precision: of matrix products and convolutions; tf32 needs a GPU.
    activation_checkpointing: keep the inputs of the network's blocks alone, and compute a block again where it is
    differentiated: about half the memory for a third more time, of eager computation.
    """

    vectorize: Literal["auto", "vmap", "loop"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    chunk: int | None = None
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    threads: int = 1
    activation_checkpointing: Literal["off", "on"] = "off"

    def __post_init__(self) -> None:
        require_positive("engine", threads=self.threads, chunk=self.chunk)
        fused = "compiled code chooses itself what it keeps: set engine.compile=off"
        together = self.activation_checkpointing == "on" and self.compile == "on"
        require(not together, f"engine.activation_checkpointing: has no effect with engine.compile=on: {fused}")
        no_effect = (
            "engine.chunk: has no effect where tasks are looped over: remove it, or set engine.vectorize to vmap"
        )
        require(self.chunk is None or self.vectorize != "loop", no_effect)
        require_at_most("engine", 1024, threads=self.threads)


_MOST_PER_NODE = 100
"""Ray counts shares of a resource in ten thousandths: of 1 / N, N fit and N + 1 do not, up to here."""


@dataclass(frozen=True)
class WorkerRange:
    """An elastic number of workers: as many as the cluster has room for, from `min` to `max`."""

    min: int = 1
    max: int = 1

    def __post_init__(self) -> None:
        require_positive("", min=self.min, max=self.max)
        require(self.min <= self.max, f"max: {self.max} is below min, {self.min}: set it to {self.min} or more")


@dataclass(frozen=True)
class ExecutorSettings:
    """Where tasks are computed, in shards of `shard_size` tasks that never depend on the number of workers.

    name: ray_train is for training alone: other commands then compute as with ray.
    workers: a number, or {min, max}. workers_per_node: the most of them on one node of the cluster; null for as many
    as it has room for.
    timeout: seconds after which a worker that does not answer is replaced; from the start others do its shards.
    deadline: seconds without enough workers, or without any answer, after which the run is kept and given up.
    """

    name: Literal["in_process", "ray", "ray_train"] = "in_process"
    workers: int | WorkerRange = 1
    shard_size: int = 4
    address: str | None = None
    gpus_per_worker: float = 0.0
    workers_per_node: int | None = None
    timeout: float = 120.0
    deadline: float = 600.0

    def __post_init__(self) -> None:
        require_positive("executor", workers=self.max_workers, shard_size=self.shard_size)
        require_positive("executor", workers_per_node=self.workers_per_node)
        if self.workers_per_node is not None:
            require_at_most("executor", _MOST_PER_NODE, workers_per_node=self.workers_per_node)
            nowhere = f"executor.workers_per_node: has no effect with {self.name}: set executor.name to ray"
            require(self.name == "ray", f"{nowhere}, or remove it")
        require_positive("executor", timeout=self.timeout, deadline=self.deadline)
        require_not_negative("executor", gpus_per_worker=self.gpus_per_worker)
        whole = self.gpus_per_worker <= 1 or self.gpus_per_worker == int(self.gpus_per_worker)
        require(whole, f"executor.gpus_per_worker: {self.gpus_per_worker:g} must be whole above 1: set 1, or 2")

    @property
    def on_ray(self) -> bool:
        """Tell whether tasks are computed on a Ray cluster."""
        return self.name != "in_process"

    @property
    def has_driver(self) -> bool:
        """Tell whether a process besides the workers steps the optimiser: in process and on ranks each worker does."""
        return self.name == "ray"

    @property
    def max_workers(self) -> int:
        """Return the largest number of workers."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def min_workers(self) -> int:
        """Return the number of workers that the run needs to go on."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else 1
