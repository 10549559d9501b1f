"""Measure the peak memory of implicit meta-gradients (iMAML) against inner steps, beside those through every step.

Omniglot conv4-64, 4 tasks one after another, one thread, eager. Each number is the largest sum of tensors that were
alive at once during one meta-gradient, in bytes that torch's allocator gave out: it is exact and does not depend on
what else the machine does. Parameters and tasks, which exist before, are not counted. Claim: iMAML's at 100 inner steps
is within 5 % of that at 5.
"""

import argparse
from typing import Any

import torch

from benchmarks import cases, results
from benchmarks.metatrain_contender import compute_with
from benchmarks.peak import peak_bytes
from metatrain.algorithms import IMAML, MAML
from metatrain.algorithms.base import Algorithm
from metatrain.engine import Engine

STEPS = (5, 20, 100)
_METHODS: dict[str, Any] = {"iMAML": IMAML, "MAML": MAML}


def main(argv: list[str]) -> None:
    """Measure, and write the part "implicit"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks implicit", description=__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    steps = parser.parse_args(argv).steps
    torch.set_num_threads(1)
    peaks = {method: [_measure(method, count) for count in steps] for method in _METHODS}
    rows = [[method, *found, found[-1] / found[0]] for method, found in peaks.items()]
    columns = ["method", *(f"{count} (MiB)" for count in steps), "last over first"]
    notes = ["Omniglot conv4-64, 4 tasks, one thread, eager; iMAML with 5 iterations of conjugate gradient."]
    results.write("implicit", "Memory of implicit meta-gradients against inner steps", columns, rows, notes, {})


def _measure(method: str, steps: int) -> float:
    case = cases.find_case("omniglot-5-4")
    algorithm: Algorithm = _METHODS[method](inner_steps=steps)
    gradient = compute_with(algorithm, case, cases.params_of(case), cases.tasks_of(case), Engine("loop"))
    gradient()
    found = peak_bytes(gradient) / 2**20
    print(f"{method:6} {steps:3} steps  {found:.3f} MiB", flush=True)
    return found
