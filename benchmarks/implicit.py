"""Measure the peak memory of implicit meta-gradients (iMAML) against inner steps, beside those through every step.

Omniglot conv4-64, 4 tasks, one thread, eager. Each number is measured in a fresh process: the median over seven
meta-gradients, after a first one, of peak resident memory above the resident memory before. Claim: iMAML's at 100 inner
steps is within 5 % of that at 5.
"""

import argparse
import json
import subprocess
import sys
from statistics import median
from typing import Any

import torch

from benchmarks import cases, results
from benchmarks.contender_process import peak
from benchmarks.metatrain_contender import compute_with
from metatrain.algorithms import IMAML, MAML
from metatrain.algorithms.base import Algorithm
from metatrain.engine import Engine
from metatrain.training.worker import keep_freed_memory

STEPS = (5, 20, 100)
_REPEATS = 7
_METHODS: dict[str, Any] = {"iMAML": IMAML, "MAML": MAML}


def main(argv: list[str]) -> None:
    """Measure, and write the part "implicit"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks implicit", description=__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "STEPS"), help="measure one point in this process")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(_peak_of(options.one[0], int(options.one[1]))))
        return
    peaks = {method: [_measure(method, steps) for steps in options.steps] for method in _METHODS}
    rows = [[method, *found, found[-1] / found[0]] for method, found in peaks.items()]
    columns = ["method", *(f"{steps} (MiB)" for steps in options.steps), "last over first"]
    notes = ["Omniglot conv4-64, 4 tasks, one thread, eager; iMAML with 5 iterations of conjugate gradient."]
    results.write("implicit", "Memory of implicit meta-gradients against inner steps", columns, rows, notes, {})


def _measure(method: str, steps: int) -> float:
    command = [sys.executable, "-m", "benchmarks", "implicit", "--one", method, str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = float(json.loads(done.stdout.splitlines()[0]))
    print(f"{method:6} {steps:3} steps  {found:.1f} MiB", flush=True)
    return found


def _peak_of(method: str, steps: int) -> float:
    torch.set_num_threads(1)
    keep_freed_memory()
    case = cases.find_case("omniglot-5-4")
    algorithm: Algorithm = _METHODS[method](inner_steps=steps)
    gradient = compute_with(algorithm, case, cases.params_of(case), cases.tasks_of(case), Engine("loop"))
    gradient()
    return float(median(peak(gradient, "")["peak_mib"] for _ in range(_REPEATS)))
