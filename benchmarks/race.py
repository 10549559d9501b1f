"""Compare the speed of metatrain and other libraries: seconds for one exact second-order meta-gradient, in turn.

Each contender is a process that lives through the whole case. All gradients are first compared with the reference
(torch alone, in float64); a contender with a wrong gradient is not timed. Then they are measured in rounds, A B C A B
C …, while the others wait idly, so that other load on the machine affects all alike.
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
from benchmarks.contender_client import ContenderClient, ContenderError
from benchmarks.contenders import CONTENDERS, OURS, available

WITHIN = 1e-3
"""Maximum relative error of a gradient; ten times the error of torch alone in float32 if that is larger, because many
steps at a high rate amplify rounding in every library."""
AT_LEAST_S = 0.5
QUIET = 0.05
"""Share of the machine in use, while all contenders wait, above which the page warns: other load slows threads that
wait for each other more than single-threaded processes such as metatrain's."""
RIVALS = {"library": ("higher", "torchopt", "learn2learn"), "by hand": ("naive", "naive-vmap")}
"""Contenders that metatrain is compared with: libraries, and code written with torch alone."""
Result = dict[str, Any]
"""Result of one contender: "seconds" per round, "error", "first_call_s"; or "failed", one line."""


class Settings(NamedTuple):
    """Settings of a race."""

    contenders: list[str]
    rounds: int
    limit: float


def main(argv: list[str]) -> None:
    """Run the named cases, or all, and write each as soon as it is done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks race", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", default=list(cases.RACE), help=f"FAMILY-STEPS-BATCH: {', '.join(cases.RACE)}"
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=600.0, help="maximum seconds per answer")
    options = parser.parse_args(argv)
    for name in options.cases:
        case = cases.find_case(name)
        chosen = options.contenders or [name for name in CONTENDERS if case.threads == 1 or name != "metatrain-eager"]
        found, busy = race(case, Settings(chosen, options.rounds, options.limit))
        for contender, one in found.items():
            print(
                f"{name:16} {contender:16} {_format_rates(case, one) if 'seconds' in one else one['failed']}",
                flush=True,
            )
        write_results(name, found, options.rounds, busy)


def race(case: cases.Case, settings: Settings) -> tuple[dict[str, Result], float]:
    """Return contender -> result, and the busy share of the machine while all were waiting.

    ContenderError: the reference cannot be computed.
    """
    absent = {name: why for name, why in available().items() if why}
    found: dict[str, Result] = {name: {"failed": absent[name]} for name in settings.contenders if name in absent}
    children: dict[str, ContenderClient] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            reference = _reference(case, Path(folder) / "reference.npz", settings.limit)
            for name in settings.contenders:
                if name not in absent:
                    found[name] = _start_contender(
                        case, name, Path(folder) / f"{name}.npz", reference, children, settings.limit
                    )
            _reject_wrong_gradients(found)
            busy = _busy_share()
            for _ in range(settings.rounds):
                for name, child in children.items():
                    if "failed" not in found[name]:
                        _measure(child, found[name])
        finally:
            for child in children.values():
                child.stop()
    return {name: found[name] for name in settings.contenders}, busy


def write_results(name: str, found: dict[str, Result], rounds: int, busy: float) -> None:
    """Add a case to the results; keep earlier cases of the same machine and versions."""
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
    _write_checks(kept)


def _reference(case: cases.Case, file: Path, limit: float) -> dict[str, Any]:
    child = ContenderClient("naive", case.name, "--double", limit=limit)
    try:
        child.ask(f"warm {file}")
    finally:
        child.stop()
    return dict(np.load(file))


def _start_contender(
    case: cases.Case,
    name: str,
    file: Path,
    reference: dict[str, Any],
    children: dict[str, ContenderClient],
    limit: float,
) -> Result:
    """Start a contender, time its first call and compute the error of its gradient."""
    try:
        # All contenders keep freed memory (a glibc setting) as metatrain's workers do: it is not part of the race.
        children[name] = ContenderClient(name, case.name, "--keep-freed", limit=limit)
        found = children[name].ask(f"warm {file}")
        if name not in OURS and cases.find_case(case.name).threads == 0:
            found |= children[name].ask("threads")
    except ContenderError as failed:
        return {"failed": str(failed)}
    return found | {"error": _relative_error(dict(np.load(file)), reference), "seconds": []}


def _relative_error(gradient: dict[str, Any], reference: dict[str, Any]) -> float:
    """Return ‖g − r‖ / ‖r‖ over all parameters; infinite if a value is missing or not finite."""
    if gradient.keys() != reference.keys():
        return float("inf")
    off = sum(float(np.square(gradient[name].astype(np.float64) - r).sum()) for name, r in reference.items())
    size = sum(float(np.square(r).sum()) for r in reference.values())
    relative = float(np.sqrt(off / size))
    return relative if np.isfinite(relative) else float("inf")


def _reject_wrong_gradients(found: dict[str, Result]) -> None:
    """Mark contenders as failed whose error exceeds the tolerance of float32."""
    tolerance = max(WITHIN, 10 * found.get("naive", {}).get("error", 0.0))
    for one in found.values():
        if "error" in one:
            one["tolerance"] = tolerance
            if not one["error"] <= tolerance or tolerance == float("inf"):
                one["failed"] = f"gradient off by {one['error']:.1e}, {tolerance:.1e} allowed: not timed"
                del one["seconds"]


def _measure(child: ContenderClient, found: Result) -> None:
    try:
        found["seconds"].append(child.ask(f"go {AT_LEAST_S}")["seconds"])
    except ContenderError as failed:
        found["failed"] = str(failed)
        del found["seconds"]


def _busy_share(over_s: float = 3.0) -> float:
    """Return the busy share of all cores, in [0, 1], over `over_s` seconds."""

    def ticks() -> tuple[int, int]:
        numbers = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]

    all_before, idle_before = ticks()
    time.sleep(over_s)
    all_after, idle_after = ticks()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)


def _rates(case: cases.Case, one: Result) -> tuple[float, float, float]:
    """Return tasks per second: median, lowest, highest."""
    rates = [case.meta_batch / seconds for seconds in one["seconds"]]
    return statistics.median(rates), min(rates), max(rates)


def _format_rates(case: cases.Case, one: Result) -> str:
    median, low, high = (f"{rate:.3g}" if rate < 100 else f"{rate:.0f}" for rate in _rates(case, one))
    return f"{median} ({low}–{high})"


def _row(name: str, found: dict[str, Result]) -> list[Any]:
    case = cases.find_case(name)
    row: list[Any] = [name, case.inner_steps, case.meta_batch, case.threads or "all"]
    for contender in CONTENDERS:
        one = found.get(contender)
        row.append(None if one is None else _format_rates(case, one) if "seconds" in one else "failed")
    return [*row, *(_ratio(found, rivals) for rivals in RIVALS.values())]


def _ratio(found: dict[str, Result], rivals: tuple[str, ...]) -> str | None:
    """Return the speed-up over the fastest of `rivals`: of medians, and its range over rounds."""
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
        "gradient, whichever is longer. The last columns name the fastest library and the fastest hand-written code, "
        "compared round by round.",
        "Threads all: the other libraries use every core or one, whichever was faster (see race.json), with tasks in "
        "memory; "
        "metatrain uses a Ray cluster with one worker per core, and its broadcast, sampling, gathering and summing are "
        "counted.",
        "naive is torch alone: functional_call, and autograd through autograd; naive-vmap is torch.func's grad of grad "
        "over all tasks at once. All except metatrain use the same network code.",
    ]
    loud = [f"{name} {case['busy']:.0%}" for name, case in kept.items() if case["busy"] > QUIET]
    if loud:
        notes.append(f"The machine was not idle; busy shares while all contenders waited: {', '.join(loud)}")
    failed: dict[str, list[str]] = {}
    for name, case in kept.items():
        for contender, one in case["found"].items():
            if "failed" in one:
                failed.setdefault(f"{contender} failed: {one['failed']}", []).append(name)
    notes += [f"{why} ({', '.join(where)})" for why, where in failed.items()]
    return notes


def _write_checks(kept: dict[str, Any]) -> None:
    """Write the gradients' errors and the first calls, a row per case and contender."""
    rows = [
        [name, contender, one.get("error"), one.get("tolerance"), one.get("first_call_s")]
        for name, case in kept.items()
        for contender, one in case["found"].items()
        if "error" in one
    ]
    notes = [
        "Error: ‖g − r‖ / ‖r‖ of the whole float32 gradient, r being torch's double backward in float64 on the same "
        f"tasks. Allowed: {WITHIN:g}, or ten times the error of naive in float32 if that is larger.",
        "First call: includes compilation, loading and allocation (compiled code may come from torch's cache).",
    ]
    columns = ["case", "contender", "error", "allowed", "first call (s)"]
    results.write("race-checks", "The race: are the gradients right?", columns, rows, notes, {})


def _plots(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return plots of tasks per second by inner steps, for families with several numbers of steps."""
    plots = []
    for family, batches in (("sinusoid", (256,)), ("omniglot", (8, 32))):
        chosen = [cases.find_case(name) for name in kept]
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
