"""Measure tasks per second while one of two workers is stopped (SIGSTOP) and after it continues (SIGCONT)."""

import argparse
import os
import signal
import time

import torch

from benchmarks import results
from cluster.connection import connect_ray
from cluster.executor import RayExecutor
from metatrain.config.load import read_config
from metatrain.training.outer_loop import initial_state, train
from metatrain.training.worker import Worker

COLUMNS = ["phase", "tasks/s", "of before", "blocks done twice"]
_NOTES = [
    "MAML, 2 inner steps, conv4-16 on strokes, 5 ways, 16 tasks a step in shards of 2, two workers on two "
    "cores. Each phase begins with the signal, so the time to detect it is included."
]


def main(argv: list[str]) -> None:
    """Measure, and write the part "stopped"."""
    parser = argparse.ArgumentParser(prog="benchmarks stopped", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    config = read_config(_CONFIG)
    rows: list[list[object]] = []
    with connect_ray(config.executor):
        executor = RayExecutor(config)
        pid = executor.pids()[0]
        state = initial_state(Worker(config, torch.device("cpu")).initial(), config.outer)
        steps = train(state, executor, config.outer, config.executor.shard_size)
        for _ in range(5):
            next(steps)
        try:
            for phase, number in (("both work", None), ("one is stopped", signal.SIGSTOP), ("goes on", signal.SIGCONT)):
                if number is not None:
                    os.kill(pid, number)
                before, twice = state.step, executor.health().get("stragglers", 0.0)
                began = time.monotonic()
                while (spent := time.monotonic() - began) < arguments.seconds:
                    next(steps)
                pace = (state.step - before) * config.outer.tasks_per_step / spent
                first = pace if not rows else float(str(rows[0][1]))
                more = executor.health().get("stragglers", 0.0) - twice
                rows.append([phase, round(pace, 1), round(pace / first, 2), int(more)])
        finally:
            os.kill(pid, signal.SIGCONT)
            executor.close()
    results.write("stopped", "One of two workers stopped", COLUMNS, rows, _NOTES, {})


_CONFIG = {
    "tasks": {"name": "strokes", "train": {"ways": 5, "shots": 1, "queries": 5}},
    "model": {"name": "conv4", "width": 16},
    "algorithm": {"name": "maml", "inner_lr": 0.1, "inner_steps": 2},
    "outer": {"steps": 10**6, "tasks_per_step": 16},
    "engine": {"compile": "off"},
    "executor": {"name": "ray", "workers": 2, "shard_size": 2},
    "tracking": {"uri": None},
}
