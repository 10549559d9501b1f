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
from tune.report.collect import SearchStory, collect
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
    """The page about a search, whole at `out`: by default in its folder, or in the working directory for one that is
    kept elsewhere. Returns where. ValueError: see `collect`.
    """
    path = out or (home.path / NAME if home.storage is None else Path(NAME))
    replace_text(path, render(collect(home)))
    return path


def render(story: SearchStory) -> str:
    """The page as HTML. Everything from a search is escaped."""
    return templates(Path(__file__).parent).get_template("page.html").render(_context(story))


def _context(story: SearchStory) -> dict[str, Any]:
    budget, responses = figures.responses(story)
    results = sum(bool(trial.results) for trial in story.history.trials)
    return {
        "story": story,
        "text": text,
        "metadata": metadata,
        "count": count,
        "best": story.history.best(),
        "measure": figures.measure(story),
        "commands": commands(story),
        "train_best": train_best(story),
        "train": lambda number: f"metatrain train {shlex.quote(f'{story.where}/trials/{number:04}/config.yaml')}",
        "anytime": draw_each(figures.best_so_far(story)),
        "rungs": rungs(story.history),
        "rung_charts": draw_each(figures.rung_counts(story)),
        "parallel": draw_each(figures.parallel_coordinates(story)),
        "left_out": max(0, results - figures.MAX_LINES),
        "importances": importances(story.space, story.history),
        "importance_charts": draw_each(figures.importance(story)),
        "responses": draw_each(responses),
        "response_budget": budget,
        "weighed": weighed(story.history),
        "trade_offs": draw_each(figures.trade_offs(story)),
        "copies": copies(story),
        "lineage": draw_each(figures.lineage(story)),
        "rows": rows(story),
        "hidden": max(0, len(story.history.trials) - TRIALS),
        "environment": metadata.environment(story.environment),
    }


def commands(story: SearchStory) -> list[tuple[str, str]]:
    """What to type to go on from here, exactly, in the folder that this page was made in."""
    place = shlex.quote(story.where)
    best = story.history.best()
    said = [] if story.owner else [("Go on with the search", f"metatrain search --resume {place}")]
    if story.best is not None and not is_uri(story.where):
        said.append(("Train the best configuration alone", train_best(story)))
    if best is not None:
        trial = shlex.quote(f"{story.where}/trials/{best.number:04}")
        said.append((f"Test the best trial, {best.number}", f"metatrain evaluate {trial}"))
    return [*said, ("Make this page again", f"metatrain report {place}")]


def train_best(story: SearchStory) -> str:
    """The command for the best configuration; of a search in object storage after it was copied from this page."""
    return f"metatrain train {'best.yaml' if is_uri(story.where) else shlex.quote(f'{story.where}/best.yaml')}"


def rows(story: SearchStory) -> list[Row]:
    """The trials, the best first."""
    best = story.history.best()
    return [
        Row(
            number=trial.number,
            best=trial is best,
            value=text.value(story, trial.results[-1][1]) if trial.results else "–",
            budget=count(trial.budget),
            costs=[text.cost(trial.costs.get(name, math.nan)) for name in story.history.objectives],
            settings=[
                text.setting(trial.configuration[one.name]) if one.name in trial.configuration else "–"
                for one in story.space.parameters
            ],
            fate=text.fate(trial),
        )
        for trial in ranked(story.history)[:TRIALS]
    ]


def copies(story: SearchStory) -> list[Copied]:
    """Those that began from another's checkpoint, in the order in which they did."""
    found = []
    for trial in story.history.trials:
        if trial.parent is not None:
            parent = story.history.trials[trial.parent].configuration
            changes = [
                f"{name} {text.setting(parent[name]) if name in parent else '–'} → {text.setting(value)}"
                for name, value in trial.configuration.items()
                if name not in parent or parent[name] != value
            ]
            found.append(Copied(trial.number, trial.parent, text.steps(trial.start), changes))
    return found
