"""Measure one meta-gradient on a GPU: eager, compiled, as a CUDA graph, by precision, against a lower bound.

The lower bound (floor) is the number of operations over the device's peak rate of matrix products, or the bytes of
parameters and examples over its copy rate, whichever is longer; both rates are measured here. It needs torch, numpy
and pyarrow only; other libraries are included if they can be imported.

    python -m benchmarks accelerator omniglot-5-32          # --device cpu: try it without a GPU
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cases, results
from benchmarks.contenders import CONTENDERS, OURS, available
from benchmarks.metatrain_contender import in_process
from benchmarks.precision import gradient, place, relative_error
from metatrain.engine import Engine
from metatrain.types import Params

Gradient = Callable[[], Params]
CASES = ("omniglot-5-32", "omniglot-1-32", "sinusoid-5-256", "resnet12-1-4")


def main(argv: list[str]) -> None:
    """Measure, and write the part "accelerator"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks accelerator", description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("--device: torch finds no GPU: use a machine with one, or set --device cpu to try the benchmark")
    rows, kernels = [], {}
    for name in options.cases:
        case = cases.find_case(name)
        rows += measure(case, device, options.rounds)
        kernels[name] = hot_spots(case, device)
    columns = ["case", "variant", "tasks/s", "lowest", "highest", "error", "peak MiB", "first call s", "× floor"]
    notes = [
        f"On {torch.cuda.get_device_name() if device.type == 'cuda' else device.type}, {options.rounds} rounds in "
        "turn.",
        *(f"{name}, compiled, slowest kernels: {'; '.join(hot)}" for name, hot in kernels.items()),
    ]
    results.write("accelerator", "On a GPU: one meta-gradient", columns, rows, notes, {"kernels": kernels})


def variants(case: cases.Case, device: torch.device) -> dict[str, Callable[[], Gradient]]:
    """Return constructors of the compared variants by name."""
    kinds = ["float32", "bfloat16"] + (["tf32"] if device.type == "cuda" else [])
    engines = {
        f"{lift}, {'compiled' if compile else 'eager'}, {kind}": Engine(lift, compile, precision=kind)  # type: ignore[arg-type]
        for lift in ("vmap", "loop")
        for compile in (False, True)
        for kind in kinds
        if lift == "vmap" or (kind == "float32" and case.meta_batch <= 32)
    }
    found: dict[str, Callable[[], Gradient]] = {
        name: lambda engine=engine: our_gradient(case, engine, device) for name, engine in engines.items()
    }
    if device.type == "cuda":
        for name in ("vmap, eager, float32", "vmap, compiled, float32", "vmap, compiled, tf32"):
            found[f"{name}, CUDA graph"] = lambda name=name: capture_cuda_graph(
                our_gradient(case, engines[name], device)
            )
    params, tasks = place((cases.params_of(case), cases.tasks_of(case)), device, torch.float32)
    for name, reason in available().items():
        if name not in OURS and not reason:
            found[name] = lambda name=name: CONTENDERS[name](case, params, tasks)
    return found


def our_gradient(case: cases.Case, engine: Engine, device: torch.device) -> Gradient:
    """Return metatrain's gradient function with parameters and tasks on `device`."""
    params, tasks = place((cases.params_of(case), cases.tasks_of(case)), device, torch.float32)
    return in_process(case, params, tasks, engine)


def capture_cuda_graph(function: Gradient) -> Gradient:
    """Capture `function` as a CUDA graph; each call replays it with one launch into the same result tensors."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = function()

    def replay() -> Params:
        graph.replay()
        return found

    return replay


def measure(case: cases.Case, device: torch.device, rounds: int) -> list[list[Any]]:
    """Return a row per variant, with the reason for those that fail."""
    exact = gradient(case, Engine("loop"), device, torch.float64)
    made: dict[str, Gradient] = {}
    details_of: dict[str, list[Any]] = {}
    for name, make in variants(case, device).items():
        began = time.perf_counter()
        try:
            function = make()
            off = relative_error(function(), exact)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as failure:
            details_of[name] = [f"failed: {' '.join(str(failure).split())[:120]}"]
            continue
        made[name] = function
        details_of[name] = [f"{off:.1e}", peak(function, device), round(time.perf_counter() - began, 1)]
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, function in made.items():
            seconds[name].append(time_call(function, device))
    floor = floor_seconds(case, device)
    rows: list[list[Any]] = []
    for name, details in details_of.items():
        if name not in made:
            rows.append([case.name, name, *details, *[None] * 6])
            continue
        pace = [case.meta_batch / one for one in seconds[name]]
        middle = [round(value, 1) for value in (median(pace), min(pace), max(pace))]
        rows.append([case.name, name, *middle, *details, round(median(seconds[name]) / floor, 1)])
    return rows


def time_call(function: Gradient, device: torch.device, at_least_s: float = 0.3) -> float:
    """Return the seconds of one call, including the device's work."""
    repeats, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < at_least_s or not repeats:
        function()
        synchronize(device)
        repeats += 1
    return spent / repeats


def peak(function: Gradient, device: torch.device) -> float | None:
    """Return the peak device memory of one call in MiB; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    function()
    synchronize(device)
    return round(torch.cuda.max_memory_allocated() / 2**20, 1)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def floor_seconds(case: cases.Case, device: torch.device) -> float:
    """Return the minimum seconds of a meta-gradient: operations of a plain double backward, or bytes, at measured "
    "peaks."""
    params, tasks = place((cases.params_of(case), cases.tasks_of(case)), device, torch.float32)
    with FlopCounterMode(display=False) as counter:
        CONTENDERS["naive"](case, params, tasks)()
    # Minimum traffic: parameters and gradient for every task, and the examples, once each.
    moved = sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(params)) * 2 * case.meta_batch
    moved += sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tasks))
    side = 4096 if device.type == "cuda" else 1024
    a, source = torch.rand(side, side, device=device), torch.rand(2**26, device=device)
    target = torch.empty_like(source)
    product = min(time_call(lambda: {"": a @ a}, device) for _ in range(3))
    copy = min(time_call(lambda: {"": target.copy_(source)}, device) for _ in range(3))
    return max(counter.get_total_flops() * product / (2 * side**3), moved * copy / (2 * source.numel() * 4))


def hot_spots(case: cases.Case, device: torch.device) -> list[str]:
    """Return the five slowest kernels of the compiled meta-gradient with their share of the time."""
    function = our_gradient(case, Engine("vmap" if device.type == "cuda" else "loop", compile=True), device)
    function()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        function()
        synchronize(device)

    def spent(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = sorted(profiled.key_averages(), key=spent, reverse=True)
    total = sum(map(spent, events)) or 1.0
    return [f"{event.key[:60]} {spent(event) / total:.0%} ({event.count} calls)" for event in events[:5]]
