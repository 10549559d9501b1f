"""Measure error and memory of very long inner loops, whose memory should grow with the root of the number of steps.

The sinusoid network, one task. Error: ‖g − r‖ / ‖r‖ against torch's double backward through the whole graph, in
float64. Peak: resident memory of one float32 meta-gradient above the baseline, in its own process.
"""

import argparse
from typing import Any

import torch

from benchmarks import cases, results
from benchmarks.contenders import CONTENDERS
from benchmarks.memory import measure_peaks
from benchmarks.precision import gradient, place, relative_error
from metatrain.engine import Engine

STEPS = (10, 100, 400, 1000)
_MEMORY = ("metatrain-eager", "metatrain", "naive", "higher")


def main(argv: list[str]) -> None:
    """Measure, and write the part "long"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks long", description=__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--limit", type=float, default=600.0, help="maximum seconds per answer")
    options = parser.parse_args(argv)
    rows = [row_of(steps, options.limit) for steps in options.steps]
    columns = ["inner steps", "error in float64", *(f"{name} (MiB)" for name in _MEMORY)]
    size = sum(
        value.numel() * value.element_size() for value in cases.params_of(cases.find_case("sinusoid-1-1")).values()
    )
    notes = [
        f"Sinusoid MLP 40-40, one task, α = {cases.SINUSOID.inner_lr:g}; its parameters take {size / 2**20:.4f} MiB. "
        "From 100 steps on metatrain keeps every √K-th set of fast weights. Memory of the second call."
    ]
    results.write("long", "Very long inner loops", columns, rows, notes, {})


def row_of(steps: int, limit: float) -> list[Any]:
    """Measure the error and the peaks."""
    name = f"sinusoid-{steps}-1"
    case, cpu = cases.find_case(name), torch.device("cpu")
    params, tasks = place((cases.params_of(case), cases.tasks_of(case)), cpu, torch.float64)
    exact = CONTENDERS["naive"](case, params, tasks)()
    off = relative_error(gradient(case, Engine("vmap"), cpu, torch.float64), exact)
    peaks = [measure_peaks(name, contender, limit) for contender in _MEMORY]
    return [steps, f"{off:.1e}", *(one.get("second", one.get("failed")) for one in peaks)]
