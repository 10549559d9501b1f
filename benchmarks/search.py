"""Compare searches on objectives with known optima: BOHB, random search, ASHA and Ray's Optuna search.

Measured are the final regret of the incumbent, and the share of the budget after which it stays at or below the median
final regret of random search. Medians over seeds with bootstrap 95 % intervals. Settings were chosen on other seeds.
"""

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.search_objectives import OBJECTIVES
from benchmarks.search_race import METHODS, WORKERS, race

COLUMNS = [
    *("objective", "method", "final regret (95 % interval)", "budget to random's final (share of random's)"),
    *("level with BOHB?", "reached by"),
]
Trace = list[tuple[float, float]]


def main(argv: list[str]) -> None:
    """Measure, and write the part "search"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks search", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=float, default=40, help="the budget, in whole evaluations")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(argv)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [
        (i, method, seed, options.evaluations) for i in range(len(OBJECTIVES)) for method in METHODS for seed in seeds
    ]
    began = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        traces = dict(zip([job[:3] for job in jobs], pool.map(_run, jobs, chunksize=5), strict=True))
    minutes = (time.monotonic() - began) / 60
    rows, plots = [], []
    for i, objective in enumerate(OBJECTIVES):
        by_method = {method: [traces[i, method, seed] for seed in seeds] for method in METHODS}
        rows += table(objective.name, by_method, options.evaluations)
        plots.append(_plot(objective.name, by_method, options.evaluations))
    extra = {"plots": plots, "seeds": [seeds.start, seeds.stop], "minutes": minutes}
    title = "Searches: regret, and the budget to random search's"
    results.write("search", title, COLUMNS, rows, _notes(options, minutes), extra)


def _run(job: tuple[int, str, int, float]) -> Trace:
    import warnings

    # Ray's searcher calls Optuna in ways that give deprecation warnings.
    warnings.simplefilter("ignore")
    i, method, seed, evaluations = job
    return race(OBJECTIVES[i], METHODS[method], seed, evaluations)


def table(objective: str, traces: dict[str, list[Trace]], evaluations: float) -> list[list[Any]]:
    """Return a row per method."""
    target = float(np.median(final_regrets(traces["random"])))
    bohb = final_regrets(traces["BOHB"])
    rows = []
    for method, found in traces.items():
        regrets = final_regrets(found)
        spent = np.array([budget_to_reach(trace, target) for trace in found])
        share = _format_interval(*median_interval(spent / evaluations)) if method != "random" else None
        there = f"{int(np.isfinite(spent).sum())} of {len(spent)}"
        rows.append(
            [
                objective,
                method,
                _format_interval(*median_interval(regrets)),
                share,
                _compare_with_bohb(bohb, regrets, method),
                there,
            ]
        )
    return rows


def final_regrets(traces: list[Trace]) -> np.ndarray:
    """Return the final regret of each trace: [seeds]."""
    return np.array([trace[-1][1] for trace in traces])


def budget_to_reach(trace: Trace, target: float) -> float:
    """Return the budget from which on the regret is at most `target`; infinite if the final regret is larger."""
    spent = math.inf
    for budget, regret in reversed(trace):
        if regret > target:
            break
        spent = budget
    return spent


def median_interval(values: np.ndarray, resamples: int = 10_000) -> tuple[float, float, float]:
    """Return (median, low, high) with the percentile bootstrap's 95 % interval of the median (Efron 1979)."""
    chosen = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    # Infinite values can be sorted but not averaged, so the lower of the middle two is the median.
    medians = np.sort(np.sort(values[chosen], axis=1)[:, (len(values) - 1) // 2])
    middle = float(np.sort(values)[(len(values) - 1) // 2])
    return middle, float(medians[int(0.025 * resamples)]), float(medians[int(0.975 * resamples) - 1])


def _compare_with_bohb(bohb: np.ndarray, other: np.ndarray, method: str) -> str | None:
    """Compare BOHB with another method over paired seeds: wins, losses and the sign test's two-sided p."""
    if method == "BOHB":
        return None
    wins, losses = int((bohb < other).sum()), int((bohb > other).sum())
    count = wins + losses
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1)) / 2**count
    verdict = "BOHB worse" if losses > wins and 2 * tail < 0.05 else "BOHB better" if 2 * tail < 0.05 else "level"
    return f"{verdict}: {wins} to {losses}, p {min(2 * tail, 1.0):.2g}"


def _format_interval(middle: float, low: float, high: float) -> str:
    return f"{_number(middle)} ({_number(low)}–{_number(high)})"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "never"


def _plot(objective: str, traces: dict[str, list[Trace]], evaluations: float) -> dict[str, Any]:
    """Plot the median regret from the fourth evaluation on; before it, methods that complete every trial have none."""
    grid = np.geomspace(WORKERS, evaluations, 12)
    series = {}
    for method, found in traces.items():
        at = [[next((r for b, r in reversed(trace) if b <= spent), math.nan) for trace in found] for spent in grid]
        series[method] = [[float(b), float(np.median(r))] for b, r in zip(grid, at, strict=True)]
    axes = {"x": "budget, whole evaluations", "y": "regret, median", "log_x": False, "log_y": True}
    file = f"search-{objective.split()[0].lower()}.png"
    return {"file": file, "title": f"{objective}: the incumbent's regret", **axes, "series": series}


def _notes(options: argparse.Namespace, minutes: float) -> list[str]:
    return [
        f"Simulated: {WORKERS} workers; a free worker starts a trial at once; a step costs 1, a suggestion nothing. "
        f"{options.evaluations:g} whole evaluations in all, {options.seeds} seeds from {options.first_seed} on; "
        "rungs at "
        "1/27, 1/9, 1/3 and 1 of an evaluation, η 3. Regret is the true loss of the best of the trials at the "
        "highest rung, minus the minimum.",
        "Medians (of an even number the lower of the middle two), and the percentile bootstrap's 95 % interval. The "
        "share is the budget after which the regret stays at or below the median final regret of random search, "
        "divided by its budget.",
        "Level: a sign test over seeds, two-sided at 5 %, BOHB's wins to losses. No correction for many tests.",
        "Ray's Optuna: ray.tune's OptunaSearch with its defaults, every trial to the end, or stopped by the same rungs "
        "with results reported as by Tune's controller. BOHB's settings were chosen on seeds 1000 to 1015.",
        "Objectives: Falkner et al. 2018 (counting ones), Kandasamy et al. 2017 (the fidelities of the others, whose "
        "small budgets are good predictors).",
        f"{minutes:.0f} minutes on two shared cores of an AMD EPYC; Optuna {metadata.version('optuna')}.",
    ]
