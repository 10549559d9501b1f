"""Very long inner loops: exact in float64, in memory that grows like the root of the number of steps.

The sinusoid network, one task. Error: ‖g − r‖ / ‖r‖ against torch's double backward through the whole graph, in
float64. Peak: resident memory of one float32 meta-gradient over what was there before, in a process of its own.
"""

import argparse
from typing import Any

import torch

from benchmarks import cases, results
from benchmarks.contenders import CONTENDERS
from benchmarks.memory import measured
from benchmarks.precision import error, gradient, placed
from metatrain.engine import Engine

STEPS = (10, 100, 400, 1000)
_MEMORY = ("metatrain-eager", "metatrain", "naive", "higher")


def main(argv: list[str]) -> None:
    """Measure, and write the part "long"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks long", description=__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that any one answer may take")
    asked = parser.parse_args(argv)
    rows = [row_of(steps, asked.limit) for steps in asked.steps]
    columns = ["inner steps", "error in float64", *(f"{name} (MiB)" for name in _MEMORY)]
    size = sum(value.numel() * value.element_size() for value in cases.params_of(cases.find("sinusoid-1-1")).values())
    notes = [
        f"Sinusoid MLP 40-40, one task, α = {cases.SINUSOID.inner_lr:g}; its parameters take {size / 2**20:.4f} MiB. "
        "From 100 steps on metatrain keeps every √K-th set of fast weights. Memory is that of the second call."
    ]
    results.write("long", "Very long inner loops", columns, rows, notes, {})


def row_of(steps: int, limit: float) -> list[Any]:
    """The error, and the peaks."""
    name = f"sinusoid-{steps}-1"
    case, cpu = cases.find(name), torch.device("cpu")
    params, tasks = placed((cases.params_of(case), cases.tasks_of(case)), cpu, torch.float64)
    exact = CONTENDERS["naive"](case, params, tasks)()
    off = error(gradient(case, Engine("vmap"), cpu, torch.float64), exact)
    peaks = [measured(name, contender, limit) for contender in _MEMORY]
    return [steps, f"{off:.1e}", *(one.get("second", one.get("failed")) for one in peaks)]
