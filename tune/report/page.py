"""Render the HTML page of a search."""

import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from metatrain.report import metadata
from metatrain.report.page import templates
from metatrain.report.plots import draw_each
from metatrain.report.text import count
from metatrain.runs import Run, replace_text
from tasks.io.remote_fs import is_uri
from tune.report import figures, text
from tune.report.analysis import ranked, rungs, weighed
from tune.report.collect import SearchRecord, collect
from tune.report.importance import importances

NAME = "report.html"
TRIALS = 200
"""The table has no more of them: the best."""


class Row(NamedTuple):
    """One trial in the table of trials."""

    number: int
    best: bool
    value: str
    budget: str
    costs: list[str]
    settings: list[str]
    fate: str


class Copied(NamedTuple):
    """One copy in a population: who began from whom, after how many steps, with what changed."""

    trial: int
    parent: int
    start: str
    changes: list[str]


def write(home: Run, out: Path | None = None) -> Path:
    """Write the page about a search to `out`: by default in its folder, or in the working directory for one that is
    kept elsewhere. Returns where. ValueError: see `collect`.
    """
    path = out or (home.path / NAME if home.storage is None else Path(NAME))
    replace_text(path, render(collect(home)))
    return path


def render(record: SearchRecord) -> str:
    """Return the page as HTML. Everything from a search is escaped."""
    return templates(Path(__file__).parent).get_template("page.html").render(_context(record))


def _context(record: SearchRecord) -> dict[str, Any]:
    budget, responses = figures.responses(record)
    results = sum(bool(trial.results) for trial in record.history.trials)
    return {
        "record": record,
        "text": text,
        "metadata": metadata,
        "count": count,
        "best": record.history.best(),
        "measure": figures.measure(record),
        "commands": commands(record),
        "train_best": train_best(record),
        "train": lambda number: f"metatrain train {shlex.quote(f'{record.where}/trials/{number:04}/config.yaml')}",
        "anytime": draw_each(figures.best_so_far(record)),
        "rungs": rungs(record.history),
        "rung_charts": draw_each(figures.rung_counts(record)),
        "parallel": draw_each(figures.parallel_coordinates(record)),
        "left_out": max(0, results - figures.MAX_LINES),
        "importances": importances(record.space, record.history),
        "importance_charts": draw_each(figures.importance(record)),
        "responses": draw_each(responses),
        "response_budget": budget,
        "weighed": weighed(record.history),
        "trade_offs": draw_each(figures.trade_offs(record)),
        "copies": copies(record),
        "lineage": draw_each(figures.lineage(record)),
        "rows": rows(record),
        "hidden": max(0, len(record.history.trials) - TRIALS),
        "environment": metadata.environment(record.environment),
    }


def commands(record: SearchRecord) -> list[tuple[str, str]]:
    """Return the commands to continue with, exactly, in the folder that this page was made in."""
    place = shlex.quote(record.where)
    best = record.history.best()
    said = [] if record.owner else [("Go on with the search", f"metatrain search --resume {place}")]
    if record.best is not None and not is_uri(record.where):
        said.append(("Train the best configuration alone", train_best(record)))
    if best is not None:
        trial = shlex.quote(f"{record.where}/trials/{best.number:04}")
        said.append((f"Test the best trial, {best.number}", f"metatrain evaluate {trial}"))
    return [*said, ("Make this page again", f"metatrain report {place}")]


def train_best(record: SearchRecord) -> str:
    """Return the command for the best configuration; in object storage, once it is copied from this page."""
    return f"metatrain train {'best.yaml' if is_uri(record.where) else shlex.quote(f'{record.where}/best.yaml')}"


def rows(record: SearchRecord) -> list[Row]:
    """Return the table of trials, the best first."""
    best = record.history.best()
    return [
        Row(
            number=trial.number,
            best=trial is best,
            value=text.value(record, trial.results[-1][1]) if trial.results else "–",
            budget=count(trial.budget),
            costs=[text.cost(trial.costs.get(name, math.nan)) for name in record.history.objectives],
            settings=[
                text.setting(trial.configuration[one.name]) if one.name in trial.configuration else "–"
                for one in record.space.parameters
            ],
            fate=text.fate(trial),
        )
        for trial in ranked(record.history)[:TRIALS]
    ]


def copies(record: SearchRecord) -> list[Copied]:
    """Return those that began from another's checkpoint, in the order in which they did."""
    found = []
    for trial in record.history.trials:
        if trial.parent is not None:
            parent = record.history.trials[trial.parent].configuration
            changes = [
                f"{name} {text.setting(parent[name]) if name in parent else '–'} → {text.setting(value)}"
                for name, value in trial.configuration.items()
                if name not in parent or parent[name] != value
            ]
            found.append(Copied(trial.number, trial.parent, text.steps(trial.start), changes))
    return found
