"""Measure a training step by the driver's executor (`ray`) and by ranks of Ray Train (`ray_train`), by parameters.

The network is fully connected, on sinusoids: a task's computing grows with the parameters as their transfer does. Every
worker computes one task a step, so that nothing waits for a slow one. Both executors run on one local Ray, in turns;
a number is the median over the steps of all turns. With W workers and P parameters of four bytes:

    the driver sends and receives  2 · W · P        a rank sends, and receives  2 · P · (W - 1) / W
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import results
from cluster.connection import connect_ray
from cluster.executor import RayExecutor
from metatrain.config.load import read_config
from metatrain.runs.checkpoints import params_sha256
from metatrain.settings import Config
from metatrain.training.all_reduce import AllReduce
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state, train
from metatrain.training.ranks import Ranks
from metatrain.training.worker import Worker, driver_worker
from metatrain.types import Executor
from metatrain.yaml_config import apply_overrides

if TYPE_CHECKING:
    from cluster.train_ranks import Rank

_CONFIG: dict[str, Any] = {
    "tasks": {
        "name": "sinusoid",
        "train": {"ways": None, "shots": 5, "queries": 5},
        "test": {"ways": None, "shots": 5, "queries": 5},
    },
    "model": {"name": "mlp", "depth": 2},
    "algorithm": {"name": "maml", "inner_lr": 0.001, "inner_steps": 1},
    "engine": {"compile": "off"},
    "executor": {"shard_size": 1},
    "tracking": {"uri": None},
}
COLUMNS = [
    *("million parameters", "in_process ms", "ray ms", "ray_train ms", "ray over ray_train"),
    *("MB through the driver", "MB into a rank"),
]
Found = tuple[list[float], str]
"""Milliseconds of each step after the first, and the hash of the parameters."""


def main(argv: list[str]) -> None:
    """Measure, and write the part "all_reduce"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks all_reduce", description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[0.1, 1.0, 5.0, 25.0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a turn")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.environ["RAY_TRAIN_METRICS_ENABLED"] = "0"
    with connect_ray(_configured(1.0, "ray", arguments).executor):
        rows = [_row(millions, arguments) for millions in arguments.millions]
    results.write("all_reduce", "A step through a driver and by all-reduce", COLUMNS, rows, _notes(arguments), {})


def _row(millions: float, arguments: argparse.Namespace) -> list[Any]:
    names = ("in_process", "ray", "ray_train")
    turns = [{name: _measure(name, millions, arguments) for name in names} for _ in range(arguments.turns)]
    assert len({found[1] for turn in turns for found in turn.values()}) == 1, "the parameters differ"
    medians = [median(ms for turn in turns for ms in turn[name][0]) for name in names]
    workers = arguments.workers
    initial = driver_worker(_configured(millions, names[0], arguments)).initial()
    megabytes = 4e-6 * sum(value.numel() for value in initial.values())
    moved = [2 * workers * megabytes, 2 * (workers - 1) / workers * megabytes]
    print(f"{millions:5g} million: {', '.join(f'{value:.1f} ms' for value in medians)}", flush=True)
    return [megabytes / 4, *medians, medians[1] / medians[2], *moved]


def _measure(name: str, millions: float, arguments: argparse.Namespace) -> Found:
    """Train for one turn, from the beginning."""
    config = _configured(millions, name, arguments)
    if name == "ray_train":
        from cluster.train_ranks import run_ranks

        found: Found = run_ranks(config.executor, partial(_on_rank, config), lambda: False, lambda message: None)
        return found
    worker = driver_worker(config)
    executor: Executor = InProcess(worker) if name == "in_process" else RayExecutor(config)
    try:
        return _train(executor, worker)
    finally:
        executor.close()


def _on_rank(config: Config, rank: "Rank") -> Found:
    torch.set_num_threads(1)
    with Ranks() as ranks:
        worker = Worker(config, torch.device("cpu"))
        return _train(AllReduce(worker, ranks), worker)


def _train(executor: Executor, worker: Worker) -> Found:
    config = worker.config
    state = initial_state(worker.initial(), config.outer)
    steps = train(state, executor, config.outer, config.executor.shard_size)
    next(steps)
    return list(_timed(steps)), params_sha256(state.params)


def _timed(steps: Iterator[Any]) -> Iterator[float]:
    began = time.perf_counter()
    for _ in steps:
        yield 1e3 * (time.perf_counter() - began)
        began = time.perf_counter()


def _configured(millions: float, name: str, arguments: argparse.Namespace) -> Config:
    """Return the configuration of a network of about so many parameters: depth 2, so width² + 3 · width + 1."""
    overrides: Sequence[str] = [
        f"model.width={round((millions * 1e6) ** 0.5)}",
        f"executor.name={name}",
        f"executor.workers={arguments.workers}",
        f"outer.tasks_per_step={arguments.workers}",
        f"outer.steps={arguments.steps + 1}",
    ]
    return read_config(apply_overrides(_CONFIG, overrides))


def _notes(arguments: argparse.Namespace) -> list[str]:
    return [
        f"{arguments.workers} workers or ranks, one task each a step; medians of {arguments.turns} turns of "
        f"{arguments.steps} steps after a first one; the parameters at the end have the same bits in all.",
        "The workers, the driver and another load share this machine's two cores and no network lies between them: "
        "the times tell of copies and additions, and the bytes of what a network would add.",
        "in_process: the same tasks one after another, without any transfer.",
    ]
