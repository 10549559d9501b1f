"""What experience saves a search, and what it costs where it misleads.

Families of alike tasks are made of the objectives of `search`: each task warps every number's quantile, u -> u^γ with
ln γ normal, and turns some parameters around, u -> 1 - u. Three earlier searches on such tasks, and then one with their
experience and one without, on a new task. Misleading experience is of tasks that are turned around whole, and comes
with full weight: the distance between their tasks is taken to have failed.
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
from benchmarks.search import final, interval, reached
from benchmarks.search_objectives import OBJECTIVES, Objective, Values
from benchmarks.search_race import METHODS, Method, Ours, Trace, race, raced
from tasks.random import stream, uniforms
from tune.searchers.bohb import BOHB
from tune.searchers.warm_start import WarmStart
from tune.space.distributions import Categorical, Distribution, Value
from tune.transfer.prior_studies import PriorStudies, summarize_study

EARLIER = 3
WARP = 0.3
"""Standard deviation of ln γ."""
TURNED = 0.1
"""Probability that a parameter is turned around."""
HORIZON = 1.5
"""For how many times the cold budget the others go on, to come where the cold one ended."""
CONTESTANTS = ("another seed", "experience", "misleading")
COLUMNS = [
    *("objective", "search", "budget to cold's final regret, of cold's (95 % interval)", "reached by"),
    *("final regret (95 % interval)", "against cold"),
]


class Change(NamedTuple):
    """Of one parameter: u -> u^γ, then perhaps 1 - u."""

    power: float
    turned: bool


def main(argv: list[str]) -> None:
    """Measure, and write the part "search_experience"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks search_experience", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=float, default=30, help="the budget of each search, in whole evaluations")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args(argv)
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    jobs = [(i, seed, asked.evaluations) for i in range(len(OBJECTIVES)) for seed in seeds]
    began = time.monotonic()
    with ProcessPoolExecutor(asked.processes) as pool:
        found = dict(zip([job[:2] for job in jobs], pool.map(_run, jobs), strict=True))
    minutes = (time.monotonic() - began) / 60
    rows: list[list[Any]] = []
    raw: dict[str, dict[str, list[float]]] = {}
    for i, objective in enumerate(OBJECTIVES):
        traces = {name: [found[i, seed][name] for seed in seeds] for name in ("cold", *CONTESTANTS)}
        rows += table(objective.name, traces, asked.evaluations)
        raw[objective.name] = {name: shares(traces, name).tolist() for name in CONTESTANTS}
    everywhere = {name: [found[job][name] for job in sorted(found)] for name in ("cold", *CONTESTANTS)}
    for name in CONTESTANTS:
        ratio = shares(everywhere, name)
        rows.append(["all four", name, told(ratio), _there(ratio), None, None])
    extra = {"seeds": [seeds.start, seeds.stop], "minutes": minutes, "shares": raw}
    results.write("search_experience", "Searches with experience", COLUMNS, rows, _notes(asked, minutes), extra)


def moved(objective: Objective, seed: int, task: int, around: bool = False) -> Objective:
    """A task of the objective's family; around: every parameter is turned, whatever chance says."""
    parameters = objective.space.parameters
    drawn = uniforms(seed, stream("family"), [task], 3 * len(parameters))[0].reshape(-1, 3).tolist()
    changes = {
        parameter.name: Change(math.exp(WARP * _normal(u, v)), (w < TURNED) != around)
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


def _changed(distribution: Distribution, value: Value, change: Change) -> Value:
    if isinstance(distribution, Categorical):
        options = distribution.options
        return options[len(options) - 1 - distribution.index(value)] if change.turned else value
    u = distribution.quantile(value) ** change.power
    return distribution.value_at(1 - u if change.turned else u)


def _back(distribution: Distribution, value: Value, change: Change) -> Value:
    if isinstance(distribution, Categorical):
        return _changed(distribution, value, change)
    u = distribution.quantile(value)
    return distribution.value_at((1 - u if change.turned else u) ** (1 / change.power))


def experience(objective: Objective, seed: int, evaluations: float, around: bool) -> PriorStudies:
    """Of three earlier searches on tasks of the family, each with full weight."""
    sources = []
    for task in range(1, 1 + EARLIER):
        earlier = moved(objective, seed, task, around)
        # Seeds of earlier searches are their own: none has drawn what the new one draws.
        history, _ = raced(earlier, METHODS["BOHB"], 10_000 + 10 * seed + task, evaluations)
        source = summarize_study(f"task {task}", 1.0, history, objective.schedule.max_budget, objective.space, {})
        sources += [source] if source is not None else []
    return PriorStudies(tuple(sources))


def _run(job: tuple[int, int, float]) -> dict[str, Trace]:
    i, seed, evaluations = job
    objective = OBJECTIVES[i]
    task = moved(objective, seed, 0)
    wise, misled = (experience(objective, seed, evaluations, around) for around in (False, True))
    return {
        "cold": race(task, METHODS["BOHB"], seed, evaluations),
        "another seed": race(task, METHODS["BOHB"], seed + 5000, HORIZON * evaluations),
        "experience": race(task, _warm(wise), seed, HORIZON * evaluations),
        "misleading": race(task, _warm(misled), seed, HORIZON * evaluations),
    }


def _warm(known: PriorStudies) -> Method:
    return lambda objective, seed: (Ours(WarmStart(BOHB(), known), objective.space, seed), objective.schedule)


def table(objective: str, traces: Mapping[str, list[Trace]], evaluations: float) -> list[list[Any]]:
    """A row for each search; the final regret of the cold one is the goal, seeds paired."""
    cold = final(traces["cold"])
    rows: list[list[Any]] = [[objective, "cold", "1", f"{len(cold)} of {len(cold)}", told(cold), None]]
    for name in CONTESTANTS:
        last = np.array([at(trace, evaluations) for trace in traces[name]])
        wins, losses = int((last < cold).sum()), int((last > cold).sum())
        found = shares(traces, name)
        rows.append([objective, name, told(found), _there(found), told(last), f"better {wins}, worse {losses}"])
    return rows


def shares(traces: Mapping[str, list[Trace]], name: str) -> np.ndarray:
    """The budget after which a search is at least as good as the cold one ends, over the cold one's own: [seeds]."""
    pairs = zip(traces[name], traces["cold"], strict=True)
    return np.array([reached(trace, cold[-1][1]) / reached(cold, cold[-1][1]) for trace, cold in pairs])


def at(trace: Trace, spent: float) -> float:
    """The regret once so many evaluations are spent."""
    return next((regret for budget, regret in reversed(trace) if budget <= spent), math.inf)


def told(values: np.ndarray) -> str:
    """Median and interval."""
    middle, low, high = (f"{value:.3g}" if math.isfinite(value) else "never" for value in interval(values))
    return f"{middle} ({low}–{high})"


def _there(found: np.ndarray) -> str:
    return f"{int(np.isfinite(found).sum())} of {len(found)}"


def _notes(asked: argparse.Namespace, minutes: float) -> list[str]:
    return [
        f"Simulated as the part `search` is. Each objective is a family: a task warps the quantile of every number, "
        f"u^γ, ln γ normal with deviation {WARP:g}, and turns each parameter around with probability {TURNED:g}. "
        f"{EARLIER} earlier BOHB searches of {asked.evaluations:g} evaluations each on other tasks of the family; "
        f"{asked.seeds} seeds from {asked.first_seed} on, each with tasks of its own.",
        "Budget: after which the regret stays at or below what the cold search, BOHB without experience on the same "
        "task, ends with, over the budget at which the cold one itself came there, seeds paired; looked for up to "
        f"{HORIZON * asked.evaluations:g} evaluations. Medians (of an even number the lower of the middle two), "
        "percentile bootstrap's 95 % interval. `another seed` is cold too: what chance alone does to this ratio, which "
        "favours the search that sets the goal.",
        f"Final regret: after {asked.evaluations:g} evaluations; better and worse than cold, seeds paired.",
        "Misleading: three earlier searches on tasks with every parameter turned around, so that what was best there "
        "is worst here, or near it; with full weight, as if their tasks had looked the same.",
        "Settings were chosen on seeds 1000 to 1011 and 1012 to 1023, among thirteen variants of which not all saw "
        "both. Pooled medians there where every trial heeds experience, then where one of two does: experience 0.49 "
        "and 0.43, then 0.42 and 0.43; misleading 1.59 and 1.34, then 1.27 and 1.13; another seed 1.24 and 0.80. On "
        "seeds 0 to 9 every trial's heeding gave experience 0.47, 28 of 40, and misleading 1.68, 21 of 40. No "
        "better, as far as so few seeds tell: P(τ > 0) as a weight, judging by those trials alone that do not heed, "
        "`trust` 4, slower fading with disagreement counted twice.",
        f"{minutes:.1f} minutes on one shared core, AMD EPYC.",
    ]
