"""The race: seconds for one exact second-order meta-gradient, everyone in turn.

Each contender is a process of its own that lives through the whole case. All gradients are first held against the
reference (torch alone, in float64); who is wrong is not timed. Then they are measured in rounds, A B C A B C …, the
others waiting idly, so that what the machine does meanwhile falls on all alike.
"""

import argparse
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import cases, results
from benchmarks.child import Child, Failed
from benchmarks.contenders import CONTENDERS, OURS, available

WITHIN = 1e-3
"""Relative error of a gradient that passes, or ten times that of torch alone in float32 where this is more: through
many steps at a high rate rounding is amplified, for everyone."""
AT_LEAST_S = 0.5
QUIET = 0.05
"""More of the machine in use than this while everybody waits, and the page says so: threads that wait for each other
lose far more than their share to whatever else runs, which favours processes of one thread, ours."""
RIVALS = {"library": ("higher", "torchopt", "learn2learn"), "by hand": ("naive", "naive-vmap")}
"""Whom we are held against: the libraries for it, and what one writes with torch alone."""
Found = dict[str, Any]
"""Of one contender: "seconds" of each round, "error", "first_call_s"; or "failed", one line."""


class Settings(NamedTuple):
    """How a race is run."""

    contenders: list[str]
    rounds: int
    limit: float


def main(argv: list[str]) -> None:
    """Runs the cases that are named, or all, keeping each as soon as it is done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks race", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", default=list(cases.RACE), help=f"FAMILY-STEPS-BATCH: {', '.join(cases.RACE)}"
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that any one answer may take")
    asked = parser.parse_args(argv)
    for name in asked.cases:
        case = cases.find(name)
        chosen = asked.contenders or [name for name in CONTENDERS if case.threads == 1 or name != "metatrain-eager"]
        found, busy = race(case, Settings(chosen, asked.rounds, asked.limit))
        for contender, one in found.items():
            print(f"{name:16} {contender:16} {_speed(case, one) if 'seconds' in one else one['failed']}", flush=True)
        keep(name, found, asked.rounds, busy)


def race(case: cases.Case, settings: Settings) -> tuple[dict[str, Found], float]:
    """Contender -> what was found, and how busy the machine was while all were waiting.

    Failed: the reference itself cannot be computed.
    """
    absent = {name: why for name, why in available().items() if why}
    found: dict[str, Found] = {name: {"failed": absent[name]} for name in settings.contenders if name in absent}
    children: dict[str, Child] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            reference = _reference(case, Path(folder) / "reference.npz", settings.limit)
            for name in settings.contenders:
                if name not in absent:
                    found[name] = _entered(
                        case, name, Path(folder) / f"{name}.npz", reference, children, settings.limit
                    )
            _judge(found)
            busy = _busy()
            for _ in range(settings.rounds):
                for name, child in children.items():
                    if "failed" not in found[name]:
                        _measure(child, found[name])
        finally:
            for child in children.values():
                child.stop()
    return {name: found[name] for name in settings.contenders}, busy


def keep(name: str, found: dict[str, Found], rounds: int, busy: float) -> None:
    """Adds a case to the results, beside those of the same machine and versions that are there."""
    kept: dict[str, Any] = {}
    if "race" in results.parts():
        before = results.read("race")
        if (before["machine"], before["versions"]) == (results.machine(), results.versions()):
            kept = before["extra"]["cases"]
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    kept[name] = {"found": found, "rounds": rounds, "date": date, "busy": busy}
    order = [case for case in cases.RACE if case in kept] + sorted(kept.keys() - set(cases.RACE))
    kept = {case: kept[case] for case in order}
    columns = [
        "case",
        "inner steps",
        "meta-batch",
        "threads",
        *CONTENDERS,
        *(f"metatrain / best {kind}" for kind in RIVALS),
    ]
    extra = {"cases": kept, "plots": _plots(kept)}
    title = "The race: tasks a second, exact second-order meta-gradients"
    results.write("race", title, columns, [_row(case, one["found"]) for case, one in kept.items()], _notes(kept), extra)
    _keep_checks(kept)


def _reference(case: cases.Case, file: Path, limit: float) -> dict[str, Any]:
    child = Child("naive", case.name, "--double", limit=limit)
    try:
        child.ask(f"warm {file}")
    finally:
        child.stop()
    return dict(np.load(file))


def _entered(
    case: cases.Case, name: str, file: Path, reference: dict[str, Any], children: dict[str, Child], limit: float
) -> Found:
    """Starts a contender, whose first call is timed apart, and measures how far its gradient is from the reference."""
    try:
        # glibc is told for everybody to keep freed memory, as metatrain's workers do: that is not what is raced.
        children[name] = Child(name, case.name, "--keep-freed", limit=limit)
        found = children[name].ask(f"warm {file}")
        if name not in OURS and cases.find(case.name).threads == 0:
            found |= children[name].ask("threads")
    except Failed as failed:
        return {"failed": str(failed)}
    return found | {"error": _error(dict(np.load(file)), reference), "seconds": []}


def _error(gradient: dict[str, Any], reference: dict[str, Any]) -> float:
    """‖g − r‖ / ‖r‖ over all parameters; infinite where anything is missing or not finite."""
    if gradient.keys() != reference.keys():
        return float("inf")
    off = sum(float(np.square(gradient[name].astype(np.float64) - r).sum()) for name, r in reference.items())
    size = sum(float(np.square(r).sum()) for r in reference.values())
    relative = float(np.sqrt(off / size))
    return relative if np.isfinite(relative) else float("inf")


def _judge(found: dict[str, Found]) -> None:
    """Fails those whose gradient is wrong, as far as float32 can tell."""
    tolerance = max(WITHIN, 10 * found.get("naive", {}).get("error", 0.0))
    for one in found.values():
        if "error" in one:
            one["tolerance"] = tolerance
            if not one["error"] <= tolerance or tolerance == float("inf"):
                one["failed"] = f"gradient off by {one['error']:.1e}, {tolerance:.1e} allowed: not timed"
                del one["seconds"]


def _measure(child: Child, found: Found) -> None:
    try:
        found["seconds"].append(child.ask(f"go {AT_LEAST_S}")["seconds"])
    except Failed as failed:
        found["failed"] = str(failed)
        del found["seconds"]


def _busy(over_s: float = 3.0) -> float:
    """The share of all cores' time that something runs, in [0, 1]: the others' daemons, and whoever else is there."""

    def ticks() -> tuple[int, int]:
        numbers = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]

    all_before, idle_before = ticks()
    time.sleep(over_s)
    all_after, idle_after = ticks()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)


def _rates(case: cases.Case, one: Found) -> tuple[float, float, float]:
    """Tasks a second: median, lowest, highest."""
    rates = [case.meta_batch / seconds for seconds in one["seconds"]]
    return statistics.median(rates), min(rates), max(rates)


def _speed(case: cases.Case, one: Found) -> str:
    median, low, high = (f"{rate:.3g}" if rate < 100 else f"{rate:.0f}" for rate in _rates(case, one))
    return f"{median} ({low}–{high})"


def _row(name: str, found: dict[str, Found]) -> list[Any]:
    case = cases.find(name)
    row: list[Any] = [name, case.inner_steps, case.meta_batch, case.threads or "all"]
    for contender in CONTENDERS:
        one = found.get(contender)
        row.append(None if one is None else _speed(case, one) if "seconds" in one else "failed")
    return [*row, *(_ratio(found, rivals) for rivals in RIVALS.values())]


def _ratio(found: dict[str, Found], rivals: tuple[str, ...]) -> str | None:
    """How many times as fast as the fastest of `rivals`, of medians, and from least to most over rounds."""
    others = {name: one["seconds"] for name, one in found.items() if name in rivals and "seconds" in one}
    ours = found.get("metatrain", {}).get("seconds")
    if not others or not ours:
        return None
    best = min(others, key=lambda name: statistics.median(others[name]))
    by_round = [theirs / mine for theirs, mine in zip(others[best], ours, strict=True)]
    ratio = statistics.median(others[best]) / statistics.median(ours)
    return f"{ratio:.2f} ({min(by_round):.2f}–{max(by_round):.2f}), {best}"


def _notes(kept: dict[str, Any]) -> list[str]:
    rounds = sorted({case["rounds"] for case in kept.values()})
    notes = [
        f"Median (lowest–highest) over {' or '.join(map(str, rounds))} rounds in turn, each of {AT_LEAST_S} s or one "
        "gradient, whichever is more. The last columns name the fastest library, and the fastest of what is written by "
        "hand, rounds compared pairwise.",
        "Threads all: the others let torch use every core or one, whichever was faster (race.json says which), their "
        "tasks in memory; metatrain is a Ray cluster with a worker a core, and its broadcast, sampling, gathering and "
        "summing are counted.",
        "naive is torch alone: functional_call, and autograd through autograd; naive-vmap is torch.func's grad of grad "
        "over all tasks at once. The peers share their network.",
    ]
    loud = [f"{name} {case['busy']:.0%}" for name, case in kept.items() if case["busy"] > QUIET]
    if loud:
        notes.append(
            f"NOT A QUIET MACHINE, while all contenders waited these shares of it were busy: {', '.join(loud)}"
        )
    failed: dict[str, list[str]] = {}
    for name, case in kept.items():
        for contender, one in case["found"].items():
            if "failed" in one:
                failed.setdefault(f"{contender} failed: {one['failed']}", []).append(name)
    notes += [f"{why} ({', '.join(where)})" for why, where in failed.items()]
    return notes


def _keep_checks(kept: dict[str, Any]) -> None:
    """The gradients' errors and the first calls, a row for each case and contender."""
    rows = [
        [name, contender, one.get("error"), one.get("tolerance"), one.get("first_call_s")]
        for name, case in kept.items()
        for contender, one in case["found"].items()
        if "error" in one
    ]
    notes = [
        "Error: ‖g − r‖ / ‖r‖ of the whole float32 gradient, r being torch's double backward in float64 on the same "
        f"tasks. Allowed: {WITHIN:g}, or ten times what naive loses in float32 where that is more.",
        "First call: with whatever is compiled, loaded or allocated on it (compiled code may come from torch's cache).",
    ]
    columns = ["case", "contender", "error", "allowed", "first call (s)"]
    results.write("race-checks", "The race: are the gradients right?", columns, rows, notes, {})


def _plots(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Tasks a second against inner steps, where two cases or more of a family differ in these."""
    plots = []
    for family, batches in (("sinusoid", (256,)), ("omniglot", (8, 32))):
        chosen = [cases.find(name) for name in kept]
        chosen = [case for case in chosen if case.name.startswith(family) and case.meta_batch in batches]
        series: dict[str, list[list[float]]] = {}
        for case in sorted(chosen, key=lambda case: case.inner_steps):
            for contender, one in kept[case.name]["found"].items():
                if "seconds" in one:
                    series.setdefault(contender, []).append([case.inner_steps, *_rates(case, one)])
        if any(len(points) > 1 for points in series.values()):
            plot = {"file": f"race-{family}.png", "title": f"{family}: exact meta-gradients", "series": series}
            plots.append(plot | {"x": "inner steps", "y": "tasks a second", "log_x": True, "log_y": True})
    return plots
