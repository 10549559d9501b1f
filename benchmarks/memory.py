"""Measure the peak memory of one meta-gradient by the number of inner steps, on one thread.

Each number is measured in a fresh process: peak resident memory (VmHWM, reset before) above the resident memory after
imports and preparation, for the first call and for the second. The table shows the second, because the first also loads
and compiles.

Claim: metatrain's memory grows by at most 3 × the bytes of the adapted parameters per inner step and task in flight.
The other libraries, with one task in flight, keep the graph of every step.
"""

import argparse
from typing import Any

import numpy as np

from benchmarks import cases, results
from benchmarks.contender_client import ContenderClient, ContenderError
from benchmarks.contenders import CONTENDERS, OURS, available
from benchmarks.metatrain_contender import tasks_in_flight

STEPS = [1, 5, 10, 20, 50]
BATCHES = {"sinusoid": 16, "omniglot": 4}
MIB = 2**20
Peaks = dict[str, Any]
"""Result of one contender and case: {"first": MiB, "second": MiB} or {"failed": one line}."""


def main(argv: list[str]) -> None:
    """Measure the selected combinations, all by default, and write the part "memory"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--limit", type=float, default=600.0, help="maximum seconds per answer")
    options = parser.parse_args(argv)
    found: dict[str, dict[str, dict[int, Peaks]]] = {}
    for family in options.families:
        for contender in options.contenders:
            for steps in options.steps:
                one = measure_peaks(f"{family}-{steps}-{BATCHES[family]}", contender, options.limit)
                found.setdefault(family, {}).setdefault(contender, {})[steps] = one
                print(f"{family:10} {contender:16} {steps:3} steps  {one}", flush=True)
    write_results(found, options.steps)


def measure_peaks(name: str, contender: str, limit: float) -> Peaks:
    """Return the peaks of a contender's first and second gradient of a case."""
    if why := available()[contender]:
        return {"failed": why}
    try:
        child = ContenderClient(contender, name, "--threads", "1", limit=limit)
        try:
            return {call: child.ask("peak")["peak_mib"] for call in ("first", "second")}
        finally:
            child.stop()
    except ContenderError as failed:
        return {"failed": str(failed)}


def write_results(found: dict[str, dict[str, dict[int, Peaks]]], steps: list[int]) -> None:
    """Write the table, the notes and a plot per family."""
    columns = ["tasks", "contender", "in flight", *(f"{k} (MiB)" for k in steps), "MiB a step", "× parameters a task"]
    rows = [
        _row(family, contender, by_steps, steps)
        for family, contenders in found.items()
        for contender, by_steps in contenders.items()
    ]
    notes = [
        f"{family}: {_parameters(family) / MIB:.4f} MiB of adapted parameters, meta-batch {BATCHES[family]}."
        for family in found
    ]
    notes += [
        "In flight: tasks whose inner loops are in memory at once. MiB a step: the slope of a line fitted to the "
        "points. "
        "× parameters a task: the slope over the bytes of the adapted parameters and the tasks in flight.",
        "The claim is at most 3 in the last column for metatrain.",
    ]
    notes += [
        f"{family}, {contender}, {k} steps: failed: {one['failed']}"
        for family, contenders in found.items()
        for contender, by_steps in contenders.items()
        for k, one in by_steps.items()
        if "failed" in one
    ]
    plots = [_plot(family, contenders) for family, contenders in found.items()]
    title = "Memory of one meta-gradient against inner steps"
    results.write("memory", title, columns, rows, notes, {"found": found, "plots": plots})


def _row(family: str, contender: str, by_steps: dict[int, Peaks], steps: list[int]) -> list[Any]:
    in_flight = {"naive-vmap": BATCHES[family]}.get(contender, 1)
    if contender in OURS:
        in_flight = tasks_in_flight(cases.find_case(f"{family}-1-{BATCHES[family]}"))
    points = _points(by_steps)
    row: list[Any] = [family, contender, in_flight, *(by_steps[k].get("second") for k in steps)]
    if len(points) < 2:
        return [*row, None, None]
    slope = float(np.polyfit([k for k, _ in points], [mib for _, mib in points], 1)[0])
    return [*row, slope, slope * MIB / (_parameters(family) * in_flight)]


def _points(by_steps: dict[int, Peaks]) -> list[list[float]]:
    return [[k, one["second"]] for k, one in sorted(by_steps.items()) if "second" in one]


def _parameters(family: str) -> int:
    """Return the bytes of the adapted parameters: all of them, in MAML."""
    params = cases.params_of(cases.find_case(f"{family}-1-1"))
    return sum(value.numel() * value.element_size() for value in params.values())


def _plot(family: str, contenders: dict[str, dict[int, Peaks]]) -> dict[str, Any]:
    series = {contender: _points(by_steps) for contender, by_steps in contenders.items() if _points(by_steps)}
    plot = {"file": f"memory-{family}.png", "title": f"{family}: memory of one meta-gradient", "series": series}
    return plot | {"x": "inner steps", "y": "peak over baseline (MiB)"}
