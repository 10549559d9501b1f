"""Build the rows of the tables on the page of a search; the first cell of a row is its heading."""

import math
import shlex

from markupsafe import Markup

from metatrain.report.text import count
from tune.history.trials import Trial
from tune.report import text
from tune.report.analysis import compare_costs, rank_trials, summarize_rungs
from tune.report.collect import SearchRecord
from tune.report.importance import LEAST, Importances

MAX_TRIALS = 200
"""The table of trials has no more of them: the best."""

Rows = list[list[object]]


def break_at_dots(name: str) -> Markup:
    """Return a dotted name as HTML that may break after each dot."""
    return Markup(".<wbr>").join(name.split("."))


def _setting(trial: Trial, name: str, absent: str = "–") -> str:
    return text.setting(trial.configuration[name]) if name in trial.configuration else absent


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def best_rows(record: SearchRecord) -> Rows:
    """Return for each parameter its value in the best trial and its distribution."""
    best = record.history.best()
    if best is None:
        return []
    return [
        [break_at_dots(one.name), _setting(best, one.name, "absent"), text.distribution(one)]
        for one in record.space.parameters
    ]


def rung_rows(record: SearchRecord) -> Rows:
    """Return for each budget how many trials reached it and went on, the best value, and the steps it took."""
    found = summarize_rungs(record.history)
    computed = sum(rung.steps for rung in found) or 1
    return [
        [
            count(rung.budget),
            count(rung.trials),
            ("–" if rung is found[-1] else count(rung.went_on))
            + (f" (+{rung.running} running)" if rung.running else ""),
            text.value(record, rung.best),
            count(rung.steps),
            _percent(rung.steps / computed),
        ]
        for rung in found
    ]


def importance_rows(found: Importances) -> Rows:
    """Return for each parameter its share, what chance gives, and how many trials have it."""
    return [
        [
            break_at_dots(one.name),
            _percent(one.share),
            _percent(one.chance) if one.chance < 1 else "over 100\N{NO-BREAK SPACE}%",
            f"{one.observations}{', too few' if one.observations < LEAST else ''}",
        ]
        for one in found.parameters
    ]


def clear_names(found: Importances) -> list[Markup]:
    """Return the headings of the parameters that stand out from chance."""
    return [break_at_dots(one.name) for one in found.parameters if one.clear]


def front_rows(record: SearchRecord) -> Rows:
    """Return for each trial of the Pareto front its value, its costs and the command that trains it alone."""
    rows: Rows = []
    for one in compare_costs(record.history):
        if one.on_front:
            config = shlex.quote(f"{record.where}/trials/{one.trial.number:04}/config.yaml")
            command = Markup("<code>metatrain train {}</code>").format(config)
            rows.append([one.trial.number, text.value(record, one.value), *map(text.cost, one.costs), command])
    return rows


def copy_rows(record: SearchRecord) -> Rows:
    """Return for each trial that began from another's checkpoint: its parent, the steps, and the changed settings."""
    rows: Rows = []
    for trial in record.history.trials:
        if trial.parent is not None:
            parent = record.history.trials[trial.parent]
            changes = [
                f"{name} {_setting(parent, name)} → {text.setting(value)}"
                for name, value in trial.configuration.items()
                if name not in parent.configuration or parent.configuration[name] != value
            ]
            rows.append([trial.number, trial.parent, text.steps(trial.start), ", ".join(changes) or "nothing"])
    return rows


def trial_rows(record: SearchRecord) -> Rows:
    """Return for each trial its value, budget, costs, settings and status, the best first."""
    return [
        [
            trial.number,
            text.value(record, trial.results[-1][1]) if trial.results else "–",
            count(trial.budget),
            *(text.cost(trial.costs.get(name, math.nan)) for name in record.history.objectives),
            *(_setting(trial, one.name) for one in record.space.parameters),
            text.describe_end(trial),
        ]
        for trial in rank_trials(record.history)[:MAX_TRIALS]
    ]


def prior_rows(record: SearchRecord) -> Rows:
    """Return for each prior study its weight and how many observations of it were kept."""
    return [[one.name, f"{one.weight:.3g}", count(one.observations)] for one in record.experience]
