"""Measure what learning a table in context costs: time and memory against its rows, and drawing training tables.

The network of configs/tables-in-context.yaml, which need not be trained for this, reads tables of random numbers with
50 to 2,000 rows, and predicts 100 more. Attention between rows takes n² products for n rows, everything else n: the
fitted exponents a, of seconds ∝ rowsᵃ, say which of the two is felt. Of training, it is measured how many tables one
core draws in a second, and what share of a step's seconds that takes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import results
from benchmarks.peak import peak_bytes
from metatrain.config.load import load_config
from metatrain.models.dropout import NO_NOISE
from metatrain.training.worker import Worker
from metatrain.types import Context, Shard, ShardRequest
from tasks.types import Examples

CONFIG = Path(__file__).parents[1] / "configs" / "tables-in-context.yaml"
ROWS = (50, 100, 200, 500, 1000, 2000)
ASKED, FEATURES, CLASSES = 100, 10, 5
COLUMNS = ["rows", "reading (s)", "predicting (s)", "peak memory (MiB)"]


def main(argv: list[str]) -> None:
    """Measure, and write the part "table_costs"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks table_costs", description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shards", type=int, default=20, help="shards of training that are timed")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    worker = Worker(load_config(CONFIG), torch.device("cpu"))
    counts = sorted(set(options.rows))
    if len(counts) < 2:
        parser.error("--rows: an exponent needs two numbers of rows or more")
    rows = [measure_rows(worker, count, options.repeats) for count in counts]
    parts = np.array(rows, dtype=float).T
    exponents = [
        f"{name.split(' (')[0]} {exponent(parts[0], of)}" for name, of in zip(COLUMNS[1:], parts[1:], strict=True)
    ]
    notes = [
        f"Tables of {FEATURES} numbers and {CLASSES} classes; {ASKED} further rows are predicted at once. One thread, "
        f"median of {options.repeats}. Memory: tensors alive at once, beside the network.",
        f"Exponents a of rowsᵃ, fitted to all (to the two largest): {'; '.join(exponents)}.",
        measure_training(worker, options.shards),
    ]
    extra = {"exponents": exponents, "plots": [_plot(rows)]}
    results.write("table_costs", "Cost of learning a table in context", COLUMNS, rows, notes, extra)


def measure_rows(worker: Worker, rows: int, repeats: int) -> list[Any]:
    """Return the number of rows, the seconds of reading them and of predicting, and the peak memory of both."""
    table = torch.Generator().manual_seed(rows)
    x, asked = (torch.randn(count, FEATURES, generator=table) for count in (rows, ASKED))
    support = Examples(x, torch.arange(rows) % CLASSES)
    algorithm, model, params = worker.algorithm, worker.model, worker.initial()
    context = Context(torch.tensor(0), torch.tensor(NO_NOISE))

    def read() -> Any:
        return next(iter(algorithm.trajectory(model, params, support, context)))

    with torch.no_grad():
        adapted = read()
        predict = lambda: algorithm.predict(model, params, adapted, asked, context)  # noqa: E731
        seconds = [seconds_of(one, repeats) for one in (read, predict)]
        memory = peak_bytes(lambda: algorithm.predict(model, params, read(), asked, context)) / 2**20
    print(f"{rows:5} rows  {seconds[0]:.3f} s  {seconds[1]:.3f} s  {memory:.1f} MiB", flush=True)
    return [rows, *seconds, memory]


def seconds_of(compute: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of a call."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        compute()
        found.append(time.perf_counter() - began)
    return median(found)


def exponent(rows: Any, values: Any) -> str:
    """Return the exponent a of values ∝ rowsᵃ, of all rows and of the two largest numbers of them."""
    x, y = np.log(rows), np.log(values)
    return f"{np.polyfit(x, y, 1)[0]:.2f} ({(y[-1] - y[-2]) / (x[-1] - x[-2]):.2f})"


def measure_training(worker: Worker, shards: int) -> str:
    """Return in a sentence how fast training tables are drawn, and their share of a step's seconds."""
    params, size = worker.initial(), worker.config.executor.shard_size
    request = ShardRequest("gradient", "train", 0)
    worker.gradient(request, params, Shard(0, tuple(range(size))))  # the first one also loads
    drawing, computing = [], []
    for number in range(1, shards + 1):
        shard = Shard(number, tuple(range(number * size, (number + 1) * size)))
        began = time.perf_counter()
        tasks = worker.tasks(request, shard)
        drawn = time.perf_counter()
        worker.gradient(request, params, shard, tasks)
        drawing.append(drawn - began)
        computing.append(time.perf_counter() - drawn)
    share = sum(drawing) / (sum(drawing) + sum(computing))
    return (
        f"Training: one core draws {size / median(drawing):.0f} tables a second and learns from "
        f"{size / median(computing):.1f}: drawing takes {100 * share:.1f} % of a step. {shards} shards of {size}."
    )


def _plot(rows: list[list[Any]]) -> dict[str, Any]:
    series = {
        "reading": [[row[0], row[1]] for row in rows],
        f"predicting {ASKED} rows": [[row[0], row[2]] for row in rows],
    }
    plot = {"file": "table_costs.png", "title": "Seconds of learning a table in context", "series": series}
    return plot | {"x": "rows", "y": "seconds", "log_x": True, "log_y": True}
