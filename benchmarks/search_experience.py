"""Measure what a warm start from earlier searches saves, and what a misleading one costs.

Families of similar tasks are derived from the objectives of `search`: each task warps the quantile of every number, u
-> u^γ with ln γ normal, and reverses some parameters, u -> 1 - u. Three earlier searches on such tasks are followed
by one with their experience and one without, on a new task. Misleading experience comes from tasks with all
parameters reversed, with full weight, as if the distance between tasks had failed.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from benchmarks import results
from benchmarks.search import budget_to_reach, final_regrets, median_interval
from benchmarks.search_objectives import OBJECTIVES, Objective, Values
from benchmarks.search_race import METHODS, Method, Trace, TuneAdapter, race, simulate
from tasks.random import stream, uniforms
from tune.searchers.bohb import BOHB
from tune.searchers.warm_start import WarmStart
from tune.space.distributions import Categorical, Distribution, Value
from tune.transfer.prior_studies import PriorStudies, summarize_study

EARLIER = 3
WARP = 0.3
"""Standard deviation of ln γ."""
TURNED = 0.1
"""Probability that a parameter is reversed."""
HORIZON = 1.5
"""Budget of the other searches, as a multiple of the cold one's, to reach its final regret."""
VARIANTS = ("another seed", "experience", "misleading")
COLUMNS = [
    *("objective", "search", "budget to cold's final regret, of cold's (95 % interval)", "reached by"),
    *("final regret (95 % interval)", "against cold"),
]


class Warp(NamedTuple):
    """Transformation of one parameter: u -> u^γ, then 1 - u if turned."""

    power: float
    turned: bool


def main(argv: list[str]) -> None:
    """Measure, and write the part "search_experience"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks search_experience", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=float, default=30, help="the budget of each search, in whole evaluations")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(argv)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [(i, seed, options.evaluations) for i in range(len(OBJECTIVES)) for seed in seeds]
    began = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        found = dict(zip([job[:2] for job in jobs], pool.map(_run, jobs), strict=True))
    minutes = (time.monotonic() - began) / 60
    rows: list[list[Any]] = []
    raw: dict[str, dict[str, list[float]]] = {}
    for i, objective in enumerate(OBJECTIVES):
        traces = {name: [found[i, seed][name] for seed in seeds] for name in ("cold", *VARIANTS)}
        rows += table(objective.name, traces, options.evaluations)
        raw[objective.name] = {name: shares(traces, name).tolist() for name in VARIANTS}
    everywhere = {name: [found[job][name] for job in sorted(found)] for name in ("cold", *VARIANTS)}
    for name in VARIANTS:
        ratio = shares(everywhere, name)
        rows.append(["all four", name, format_interval(ratio), _count_reached(ratio), None, None])
    extra = {"seeds": [seeds.start, seeds.stop], "minutes": minutes, "shares": raw}
    results.write("search_experience", "Searches with experience", COLUMNS, rows, _notes(options, minutes), extra)


def transform_task(objective: Objective, seed: int, task: int, around: bool = False) -> Objective:
    """Return a task of the objective's family; around: every parameter's reversal is inverted."""
    parameters = objective.space.parameters
    drawn = uniforms(seed, stream("family"), [task], 3 * len(parameters))[0].reshape(-1, 3).tolist()
    changes = {
        parameter.name: Warp(math.exp(WARP * _normal(u, v)), (w < TURNED) != around)
        for parameter, (u, v, w) in zip(parameters, drawn, strict=True)
    }
    distributions = {parameter.name: parameter.distribution for parameter in parameters}

    def there(x: Values) -> Values:
        return {name: _changed(distributions[name], value, changes[name]) for name, value in x.items()}

    back = {name: _back(distributions[name], value, changes[name]) for name, value in objective.minimiser.items()}
    return dataclasses.replace(
        objective,
        loss=lambda x, z, address: objective.loss(there(x), z, address),
        true_loss=lambda x: objective.true_loss(there(x)),
        minimiser=back,
    )


def _normal(u: float, v: float) -> float:
    return math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)


def _changed(distribution: Distribution, value: Value, change: Warp) -> Value:
    if isinstance(distribution, Categorical):
        options = distribution.options
        return options[len(options) - 1 - distribution.index(value)] if change.turned else value
    u = distribution.quantile(value) ** change.power
    return distribution.value_at(1 - u if change.turned else u)


def _back(distribution: Distribution, value: Value, change: Warp) -> Value:
    if isinstance(distribution, Categorical):
        return _changed(distribution, value, change)
    u = distribution.quantile(value)
    return distribution.value_at((1 - u if change.turned else u) ** (1 / change.power))


def run_earlier_searches(objective: Objective, seed: int, evaluations: float, around: bool) -> PriorStudies:
    """Run three earlier searches on tasks of the family; each gets full weight."""
    sources = []
    for task in range(1, 1 + EARLIER):
        earlier = transform_task(objective, seed, task, around)
        # Earlier searches have other seeds, so that their draws differ from those of the new one.
        history, _ = simulate(earlier, METHODS["BOHB"], 10_000 + 10 * seed + task, evaluations)
        source = summarize_study(f"task {task}", 1.0, history, objective.schedule.max_budget, objective.space, {})
        sources += [source] if source is not None else []
    return PriorStudies(tuple(sources))


def _run(job: tuple[int, int, float]) -> dict[str, Trace]:
    i, seed, evaluations = job
    objective = OBJECTIVES[i]
    task = transform_task(objective, seed, 0)
    wise, misled = (run_earlier_searches(objective, seed, evaluations, around) for around in (False, True))
    return {
        "cold": race(task, METHODS["BOHB"], seed, evaluations),
        "another seed": race(task, METHODS["BOHB"], seed + 5000, HORIZON * evaluations),
        "experience": race(task, _warm(wise), seed, HORIZON * evaluations),
        "misleading": race(task, _warm(misled), seed, HORIZON * evaluations),
    }


def _warm(known: PriorStudies) -> Method:
    return lambda objective, seed: (TuneAdapter(WarmStart(BOHB(), known), objective.space, seed), objective.schedule)


def table(objective: str, traces: Mapping[str, list[Trace]], evaluations: float) -> list[list[Any]]:
    """Return a row per search; the goal is the final regret of the cold search, with paired seeds."""
    cold = final_regrets(traces["cold"])
    rows: list[list[Any]] = [[objective, "cold", "1", f"{len(cold)} of {len(cold)}", format_interval(cold), None]]
    for name in VARIANTS:
        last = np.array([regret_at(trace, evaluations) for trace in traces[name]])
        wins, losses = int((last < cold).sum()), int((last > cold).sum())
        found = shares(traces, name)
        rows.append(
            [
                objective,
                name,
                format_interval(found),
                _count_reached(found),
                format_interval(last),
                f"better {wins}, worse {losses}",
            ]
        )
    return rows


def shares(traces: Mapping[str, list[Trace]], name: str) -> np.ndarray:
    """Return the budget to reach the cold search's final regret, over the cold search's budget for it: [seeds]."""
    pairs = zip(traces[name], traces["cold"], strict=True)
    return np.array([budget_to_reach(trace, cold[-1][1]) / budget_to_reach(cold, cold[-1][1]) for trace, cold in pairs])


def regret_at(trace: Trace, spent: float) -> float:
    """Return the regret after `spent` evaluations."""
    return next((regret for budget, regret in reversed(trace) if budget <= spent), math.inf)


def format_interval(values: np.ndarray) -> str:
    """Format the median and its interval."""
    middle, low, high = (f"{value:.3g}" if math.isfinite(value) else "never" for value in median_interval(values))
    return f"{middle} ({low}–{high})"


def _count_reached(found: np.ndarray) -> str:
    return f"{int(np.isfinite(found).sum())} of {len(found)}"


def _notes(options: argparse.Namespace, minutes: float) -> list[str]:
    return [
        f"Simulated as in the part `search`. Each objective is a family: a task warps the quantile of every number, "
        f"u^γ, ln γ normal with deviation {WARP:g}, and reverses each parameter with probability {TURNED:g}. "
        f"{EARLIER} earlier BOHB searches of {options.evaluations:g} evaluations each on other tasks of the family; "
        f"{options.seeds} seeds from {options.first_seed} on, each with tasks of its own.",
        "Budget: the one after which the regret stays at or below the final regret of the cold search (BOHB without "
        "experience on the same task), over the budget at which the cold one reached it, seeds paired; searched up to "
        f"{HORIZON * options.evaluations:g} evaluations. Medians (of an even number the lower of the middle two), "
        "percentile bootstrap's 95 % interval. `another seed` is a cold search too: it shows the effect of chance on "
        "this ratio, "
        "which favours the search that sets the goal.",
        f"Final regret: after {options.evaluations:g} evaluations; better and worse than cold, seeds paired.",
        "Misleading: three earlier searches on tasks with every parameter reversed, so that their best "
        "configurations are "
        "close to the worst here; with full weight, as if their tasks were the same.",
        "Settings were chosen on seeds 1000 to 1011 and 1012 to 1023, among thirteen variants, not all on both. "
        "Pooled medians there if every trial uses experience, then if every other one does: experience 0.49 "
        "and 0.43, then 0.42 and 0.43; misleading 1.59 and 1.34, then 1.27 and 1.13; another seed 1.24 and 0.80. On "
        "seeds 0 to 9 using experience in every trial gave 0.47 (28 of 40), and misleading 1.68 (21 of 40). Not "
        "better, "
        "as far as so few seeds show: P(τ > 0) as a weight, judging only by trials without experience, `trust` 4, "
        "slower fading with disagreement counted twice.",
        f"{minutes:.1f} minutes on one shared core, AMD EPYC.",
    ]
