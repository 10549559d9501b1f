"""Measure where the time of one task's meta-gradient goes, eager and compiled, on one thread, and what the floor is.

torch's profiler attributes the time of each operation, less that of the operations it calls, to a kind. The floor is
the number of floating-point operations of all convolutions and products over the fastest rate of a large product on
this core: a program of products alone, without memory traffic, could not be faster.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import results
from benchmarks.cases import Case, find_case, params_of, tasks_of
from benchmarks.metatrain_contender import in_process
from metatrain.engine import Engine
from metatrain.training.devices import keep_freed_memory

KINDS = {
    "products": ("_linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "convolutions": ("mkldnn_convolution", "convolution_backward", "slow_conv", "aten::_convolution"),
    "patches": ("_embedding_bag",),
    "fused loops": ("CompiledFxGraph",),
    "normalisation": ("batch_norm", "aten::var_mean"),
    "copies": ("aten::copy_", "aten::clone", "aten::contiguous", "aten::cat"),
}
"""Kinds of operations by parts of their names; the first that fits counts."""
REST = "other operations"


class Found(NamedTuple):
    """Milliseconds of one task: in all without the profiler, and by kind with it; calls by kind."""

    ms: float
    by_kind: dict[str, float]
    calls: dict[str, float]


def main(argv: list[str]) -> None:
    """Measure the cases, and write the part "breakdown"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks breakdown", description=__doc__)
    parser.add_argument("cases", nargs="*", default=["omniglot-5-8", "omniglot-1-8"], help="as in the race")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    rate, rows = product_rate(), []
    for case in map(find_case, options.cases):
        operations = count_operations(case)
        for compiled in (False, True):
            found = measure(case, compiled, options.rounds)
            rows.append(_row(case, compiled, found, operations, rate))
            print(dict(zip(_columns(), rows[-1], strict=True)), flush=True)
    title = "Where the time of a task goes: milliseconds of one core"
    results.write("breakdown", title, _columns(), rows, _notes(rate), {})


def measure(case: Case, compiled: bool, rounds: int) -> Found:
    """Return where the time of a task of `case` goes."""
    gradient = in_process(case, params_of(case), tasks_of(case), Engine("loop", compiled))
    gradient()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        gradient()
        seconds.append(time.perf_counter() - began)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        gradient()
    by_kind: dict[str, float] = defaultdict(float)
    calls: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), REST)
        by_kind[kind] += event.self_cpu_time_total / 1e3 / case.meta_batch
        calls[kind] += event.count / case.meta_batch
    return Found(1e3 * median(seconds) / case.meta_batch, by_kind, calls)


def count_operations(case: Case) -> float:
    """Return the floating-point operations of a task's convolutions and products, without what is computed twice.

    Those of autograd through autograd, which keeps every step and recomputes none.
    """
    from benchmarks.contenders import naive

    gradient = naive(case, params_of(case), tasks_of(case))
    with FlopCounterMode(display=False) as counter:
        gradient()
    return counter.get_total_flops() / case.meta_batch


def product_rate(size: int = 1024) -> float:
    """Return floating-point operations per second of the faster of torch's products of two matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    contenders: list[Callable[[], Any]] = [
        lambda: a @ b,
        lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""),
    ]
    best = float("inf")
    for product in contenders:
        for _ in range(20):
            began = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _columns() -> list[str]:
    return ["case", "engine", "ms", *KINDS, REST, "calls", "GFLOP", "floor ms", "of floor"]


def _row(case: Case, compiled: bool, found: Found, operations: float, rate: float) -> list[Any]:
    floor = 1e3 * operations / rate
    parts = [round(found.by_kind.get(kind, 0.0), 2) for kind in (*KINDS, REST)]
    name = f"{case.name}, {case.inner_steps} steps"
    calls = round(sum(found.calls.values()))
    engine = "compiled" if compiled else "eager"
    return [
        name,
        engine,
        round(found.ms, 2),
        *parts,
        calls,
        round(operations / 1e9, 3),
        round(floor, 2),
        floor / found.ms,
    ]


def _notes(rate: float) -> list[str]:
    return [
        "ms: median without the profiler. The kinds are profiled, which adds about a microsecond to each call.",
        f"The floor: operations of torch's double backward at {rate / 1e9:.0f} GFLOP/s, the fastest product of "
        "1024 × 1024 matrices here. metatrain also recomputes each inner step once, so that memory does not grow with "
        "their number.",
    ]
