"""Render the HTML page of a search."""

import shlex
from pathlib import Path
from typing import Any

from metatrain.report import metadata
from metatrain.report.page import render_template, save_page
from metatrain.report.text import count
from metatrain.runs import Run
from tasks.io.remote_fs import is_uri
from tune.report import figures, tables, text
from tune.report.collect import SearchRecord, collect
from tune.report.importance import importances
from tune.report.parallel_coordinates import MAX_LINES, parallel_coordinates


def write(home: Run, out: Path | None = None) -> Path:
    """Write the page about a search to `out` (see `save_page`), and return where. ValueError: see `collect`."""
    return save_page([home], render(collect(home)), out)


def render(record: SearchRecord) -> str:
    """Return the page as HTML. Everything from a search is escaped."""
    return render_template(Path(__file__).parent, _context(record))


def _context(record: SearchRecord) -> dict[str, Any]:
    history, trials = record.history, tables.trial_rows(record)
    budget, responses = figures.responses(record)
    results = sum(bool(trial.results) for trial in history.trials)
    hidden = len(history.trials) - len(trials)
    return {
        "title": record.name,
        "record": record,
        "text": text,
        "tables": tables,
        "count": count,
        "best": history.best(),
        "measure": text.metric_label(record),
        "objectives": history.objectives,
        "cost_columns": [(text.COSTS.get(name, name), "number") for name in history.objectives],
        "parameter_columns": [(tables.break_at_dots(one.name), "long") for one in record.space.parameters],
        "commands": commands(record),
        "train_best": train_best(record),
        "anytime": figures.best_so_far(record),
        "rung_charts": figures.rung_counts(record),
        "parallel": parallel_coordinates(record),
        "left_out": max(0, results - MAX_LINES),
        "importances": importances(record.space, history),
        "importance_charts": figures.importance(record),
        "responses": responses,
        "response_budget": budget,
        "trade_offs": figures.trade_offs(record),
        "copies": tables.copy_rows(record),
        "lineage": figures.lineage(record),
        "trials": trials,
        "trials_caption": f"The best first{f'; {count(hidden)} of the last are left out' if hidden else ''}",
        "environment": metadata.environment(record.environment),
    }


def commands(record: SearchRecord) -> list[tuple[str, str]]:
    """Return the commands to continue with, exactly, in the folder that this page was made in."""
    place = shlex.quote(record.where)
    best = record.history.best()
    found = [] if record.owner else [("Resume the search", f"metatrain search --resume {place}")]
    if record.best is not None and not is_uri(record.where):
        found.append(("Train the best configuration alone", train_best(record)))
    if best is not None:
        trial = shlex.quote(f"{record.where}/trials/{best.number:04}")
        found.append((f"Test the best trial, {best.number}", f"metatrain evaluate {trial}"))
    return [*found, ("Make this page again", f"metatrain report {place}")]


def train_best(record: SearchRecord) -> str:
    """Return the command for the best configuration; in object storage, once it is copied from this page."""
    return f"metatrain train {'best.yaml' if is_uri(record.where) else shlex.quote(f'{record.where}/best.yaml')}"
