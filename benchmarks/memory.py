"""Memory: the most that one meta-gradient needs, against the number of inner steps, on one thread.

A fresh process for each number. Resident memory at its highest (VmHWM, reset before) over what was resident when
everything was imported and built, for the first call and for the second. The second is what the table shows: the
first also loads, and compiles, what is needed once.

The claim under test: what metatrain needs grows by at most 3 × bytes of the adapted parameters, for each inner step
and each task in flight; the peers, one task in flight, keep the graph of every step.
"""

import argparse
from typing import Any

import numpy as np

from benchmarks import cases, results
from benchmarks.child import Child, Failed
from benchmarks.contenders import CONTENDERS, OURS, available
from benchmarks.ours import tasks_in_flight

STEPS = [1, 5, 10, 20, 50]
BATCHES = {"sinusoid": 16, "omniglot": 4}
MIB = 2**20
Found = dict[str, Any]
"""Of one contender and case: {"first": MiB, "second": MiB}, or {"failed": one line}."""


def main(argv: list[str]) -> None:
    """Measures and keeps what is asked for, all of it by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that any one answer may take")
    asked = parser.parse_args(argv)
    found: dict[str, dict[str, dict[int, Found]]] = {}
    for family in asked.families:
        for contender in asked.contenders:
            for steps in asked.steps:
                one = measured(f"{family}-{steps}-{BATCHES[family]}", contender, asked.limit)
                found.setdefault(family, {}).setdefault(contender, {})[steps] = one
                print(f"{family:10} {contender:16} {steps:3} steps  {one}", flush=True)
    keep(found, asked.steps)


def measured(name: str, contender: str, limit: float) -> Found:
    """The peaks of a contender's first and second gradient of a case."""
    if why := available()[contender]:
        return {"failed": why}
    try:
        child = Child(contender, name, "--threads", "1", limit=limit)
        try:
            return {call: child.ask("peak")["peak_mib"] for call in ("first", "second")}
        finally:
            child.stop()
    except Failed as failed:
        return {"failed": str(failed)}


def keep(found: dict[str, dict[str, dict[int, Found]]], steps: list[int]) -> None:
    """The table, the notes and a picture for each family."""
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
        "In flight: tasks whose inner loops are held at once. MiB a step: the slope of the line through the points. "
        "× parameters a task: that, over the bytes of the adapted parameters and the tasks in flight.",
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


def _row(family: str, contender: str, by_steps: dict[int, Found], steps: list[int]) -> list[Any]:
    in_flight = {"naive-vmap": BATCHES[family]}.get(contender, 1)
    if contender in OURS:
        in_flight = tasks_in_flight(cases.find(f"{family}-1-{BATCHES[family]}"))
    points = _points(by_steps)
    row: list[Any] = [family, contender, in_flight, *(by_steps[k].get("second") for k in steps)]
    if len(points) < 2:
        return [*row, None, None]
    slope = float(np.polyfit([k for k, _ in points], [mib for _, mib in points], 1)[0])
    return [*row, slope, slope * MIB / (_parameters(family) * in_flight)]


def _points(by_steps: dict[int, Found]) -> list[list[float]]:
    return [[k, one["second"]] for k, one in sorted(by_steps.items()) if "second" in one]


def _parameters(family: str) -> int:
    """Bytes of what adapts: all parameters, in MAML."""
    params = cases.params_of(cases.find(f"{family}-1-1"))
    return sum(value.numel() * value.element_size() for value in params.values())


def _plot(family: str, contenders: dict[str, dict[int, Found]]) -> dict[str, Any]:
    series = {contender: _points(by_steps) for contender, by_steps in contenders.items() if _points(by_steps)}
    plot = {"file": f"memory-{family}.png", "title": f"{family}: memory of one meta-gradient", "series": series}
    return plot | {"x": "inner steps", "y": "peak over baseline (MiB)"}
