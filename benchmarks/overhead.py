"""Measure the overhead of a step of tiny shards for 1 to 16 workers, shard by shard and with partial sums."""

import argparse
import os
import time
from statistics import median
from typing import Any
from unittest.mock import patch

import ray
import torch

from benchmarks import results
from benchmarks.driver import JOB, EchoActor, config_with_workers, parameters, shards_of_one
from cluster.executor import LARGEST_BLOCK, RayExecutor
from metatrain.types import Params

SHARDS = 256
COLUMNS = ["workers", "parameters", "ms, each shard", "CPU ms, each shard", "ms, partial sums", "CPU ms, partial sums"]
_NOTES = [
    f"One RayExecutor.sum of {SHARDS} shards with workers that reply at once: the time is assignment, messages "
    "and addition. Medians. CPU: the driver's process, Ray's threads in it included. The workers share this machine's "
    "cores.",
]


def main(argv: list[str]) -> None:
    """Measure, and write the part "overhead"."""
    parser = argparse.ArgumentParser(prog="benchmarks overhead", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--millions", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    # As in `cluster.connection`: small vectors travel inside messages.
    os.environ.setdefault("RAY_max_direct_call_object_size", str(1 << 20))
    cores = max(*arguments.workers, os.cpu_count() or 1)
    ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    try:
        with patch("cluster.worker_pool.ShardActor", EchoActor):
            rows = [row for workers in arguments.workers for row in _rows(workers, arguments)]
    finally:
        ray.shutdown()
    results.write("overhead", "Overhead of a step of tiny shards", COLUMNS, rows, _NOTES, {})


def _rows(workers: int, arguments: argparse.Namespace) -> list[list[Any]]:
    found: dict[float, list[float]] = {millions: [] for millions in arguments.millions}
    for largest in (1, LARGEST_BLOCK):
        executor = RayExecutor(config_with_workers(workers), largest_block=largest)
        executor.pids()
        for millions, values in found.items():
            values += _of_a_step(executor, parameters(millions), arguments.repeats)
        executor.close()
    return [
        [workers, round(1e6 * millions), *(round(value, 2) for value in values)] for millions, values in found.items()
    ]


def _of_a_step(executor: RayExecutor, params: Params, repeats: int) -> list[float]:
    """Return the medians [ms, the driver's CPU ms]."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        executor.sum(JOB, params, shards_of_one(SHARDS))
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    return [median(walls), median(cpus)]
