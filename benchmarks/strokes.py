"""Measure drawings of strokes a second, on one thread.

A call draws the examples of a batch of tasks, at addresses that no call before it had; characters are sampled too.
Time is the thread's own (CPU seconds), so that other processes of the machine do not count.
"""

import argparse
import time
from statistics import median

import numpy as np
import torch

from benchmarks import results
from metatrain.training.devices import keep_freed_memory
from tasks.sources.strokes import DRAWINGS, Strokes

BATCHES = ((20, 6, 1), (5, 16, 1), (5, 16, 4), (5, 16, 16), (5, 16, 64))
"""Ways, drawings of a class, and tasks: first a training task of configs/strokes-protonet-5w1s.yaml."""
COLUMNS = ["ways", "drawings of a class", "tasks", "drawings/s", "µs a drawing"]


def main(argv: list[str]) -> None:
    """Measure, and write the part "strokes"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks strokes", description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--quiet", action="store_true", help="say that nothing else ran on this machine")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as every worker does
    seconds: dict[tuple[int, int, int], list[float]] = {batch: [] for batch in BATCHES}
    for repeat in range(-1, options.repeats):
        for batch in BATCHES:
            spent = seconds_of_drawing(batch, repeat)
            if repeat >= 0:
                seconds[batch].append(spent)
    each = {batch: median(spent) / int(np.prod(batch)) for batch, spent in seconds.items()}
    rows = [[*batch, 1 / spent, 1e6 * spent] for batch, spent in each.items()]
    beside = "nothing else ran" if options.quiet else "other processes shared the cores"
    notes = [
        f"28×28 pixels, 8 bits. Median CPU seconds of one thread over {options.repeats} interleaved repetitions, each "
        f"with addresses of its own; {beside}."
    ]
    results.write("strokes", "Drawing strokes", COLUMNS, rows, notes, {})


def seconds_of_drawing(batch: tuple[int, int, int], repeat: int) -> float:
    """Return the CPU seconds of drawing the examples of a batch: ways, drawings of a class, tasks."""
    ways, drawings, tasks = batch
    pool = Strokes().pool("train")
    draw = np.random.default_rng([ways, tasks, repeat + 1])
    classes = draw.integers(0, pool.num_classes, ways * tasks).repeat(drawings)
    members = draw.integers(0, DRAWINGS, len(classes))
    began = time.thread_time()
    pool.examples(classes, members)
    return time.thread_time() - began
