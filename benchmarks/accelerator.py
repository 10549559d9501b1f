"""One meta-gradient on a GPU: eager, compiled, as a CUDA graph, by precision, against the others and against the floor.

The floor of a task is what the device cannot undercut: its operations over the device's peak rate at matrix products,
or the bytes of its parameters and examples over the device's copying rate, whichever is longer; both rates are
measured here. Needs torch, numpy and pyarrow alone; other libraries are raced where they can be imported.

    python -m benchmarks accelerator omniglot-5-32          # --device cpu: a rehearsal without a GPU
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
from benchmarks.ours import in_process
from benchmarks.precision import error, gradient, placed
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
    asked = parser.parse_args(argv)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("--device: torch sees no GPU here: run this on a machine with one, or rehearse with --device cpu")
    rows, kernels = [], {}
    for name in asked.cases:
        case = cases.find(name)
        rows += measure(case, device, asked.rounds)
        kernels[name] = hot_spots(case, device)
    columns = ["case", "variant", "tasks/s", "lowest", "highest", "error", "peak MiB", "first call s", "× floor"]
    notes = [
        f"On {torch.cuda.get_device_name() if device.type == 'cuda' else device.type}, {asked.rounds} rounds in turn.",
        *(f"{name}, compiled, where the time goes: {'; '.join(hot)}" for name, hot in kernels.items()),
    ]
    results.write("accelerator", "On a GPU: one meta-gradient", columns, rows, notes, {"kernels": kernels})


def variants(case: cases.Case, device: torch.device) -> dict[str, Callable[[], Gradient]]:
    """What is compared, by name; each is made when its turn comes."""
    kinds = ["float32", "bfloat16"] + (["tf32"] if device.type == "cuda" else [])
    engines = {
        f"{lift}, {'compiled' if compile else 'eager'}, {kind}": Engine(lift, compile, precision=kind)  # type: ignore[arg-type]
        for lift in ("vmap", "loop")
        for compile in (False, True)
        for kind in kinds
        if lift == "vmap" or (kind == "float32" and case.meta_batch <= 32)
    }
    found: dict[str, Callable[[], Gradient]] = {
        name: lambda engine=engine: ours(case, engine, device) for name, engine in engines.items()
    }
    if device.type == "cuda":
        for name in ("vmap, eager, float32", "vmap, compiled, float32", "vmap, compiled, tf32"):
            found[f"{name}, CUDA graph"] = lambda name=name: graphed(ours(case, engines[name], device))
    params, tasks = placed((cases.params_of(case), cases.tasks_of(case)), device, torch.float32)
    for name, reason in available().items():
        if name not in OURS and not reason:
            found[name] = lambda name=name: CONTENDERS[name](case, params, tasks)
    return found


def ours(case: cases.Case, engine: Engine, device: torch.device) -> Gradient:
    """Ours, with parameters and tasks on `device`."""
    params, tasks = placed((cases.params_of(case), cases.tasks_of(case)), device, torch.float32)
    return in_process(case, params, tasks, engine)


def graphed(function: Gradient) -> Gradient:
    """`function`, captured once and replayed: one launch for all its kernels, its results in the same place."""
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
    """A row for each variant: those that fail say why."""
    exact = gradient(case, Engine("loop"), device, torch.float64)
    made: dict[str, Gradient] = {}
    about: dict[str, list[Any]] = {}
    for name, make in variants(case, device).items():
        began = time.perf_counter()
        try:
            function = make()
            off = error(function(), exact)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as failure:
            about[name] = [f"failed: {' '.join(str(failure).split())[:120]}"]
            continue
        made[name] = function
        about[name] = [f"{off:.1e}", peak(function, device), round(time.perf_counter() - began, 1)]
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, function in made.items():
            seconds[name].append(timed(function, device))
    floor = floor_seconds(case, device)
    rows: list[list[Any]] = []
    for name, told in about.items():
        if name not in made:
            rows.append([case.name, name, *told, *[None] * 6])
            continue
        pace = [case.meta_batch / one for one in seconds[name]]
        middle = [round(value, 1) for value in (median(pace), min(pace), max(pace))]
        rows.append([case.name, name, *middle, *told, round(median(seconds[name]) / floor, 1)])
    return rows


def timed(function: Gradient, device: torch.device, at_least_s: float = 0.3) -> float:
    """Seconds of one call, the device having finished."""
    repeats, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < at_least_s or not repeats:
        function()
        synchronised(device)
        repeats += 1
    return spent / repeats


def peak(function: Gradient, device: torch.device) -> float | None:
    """MiB of the device's memory at most during one call; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    function()
    synchronised(device)
    return round(torch.cuda.max_memory_allocated() / 2**20, 1)


def synchronised(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def floor_seconds(case: cases.Case, device: torch.device) -> float:
    """What a meta-gradient takes at least: operations of the plain double backward, or bytes, at the measured peaks."""
    params, tasks = placed((cases.params_of(case), cases.tasks_of(case)), device, torch.float32)
    with FlopCounterMode(display=False) as counter:
        CONTENDERS["naive"](case, params, tasks)()
    # Read and written once each: the parameters by every task, the examples, the gradient.
    moved = sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(params)) * 2 * case.meta_batch
    moved += sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tasks))
    side = 4096 if device.type == "cuda" else 1024
    a, source = torch.rand(side, side, device=device), torch.rand(2**26, device=device)
    target = torch.empty_like(source)
    product = min(timed(lambda: {"": a @ a}, device) for _ in range(3))
    copy = min(timed(lambda: {"": target.copy_(source)}, device) for _ in range(3))
    return max(counter.get_total_flops() * product / (2 * side**3), moved * copy / (2 * source.numel() * 4))


def hot_spots(case: cases.Case, device: torch.device) -> list[str]:
    """The five kernels that take longest in the compiled meta-gradient, with their share of all."""
    function = ours(case, Engine("vmap" if device.type == "cuda" else "loop", compile=True), device)
    function()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        function()
        synchronised(device)

    def spent(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = sorted(profiled.key_averages(), key=spent, reverse=True)
    total = sum(map(spent, events)) or 1.0
    return [f"{event.key[:60]} {spent(event) / total:.0%} ({event.count} calls)" for event in events[:5]]
