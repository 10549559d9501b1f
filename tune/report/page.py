"""Render the HTML page of a search."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metatrain.report import metadata
from metatrain.report.charts import HEIGHT, WIDTH
from metatrain.report.page import templates
from metatrain.report.text import count
from metatrain.runs import Run, replace_text
from tasks.io.remote_fs import is_uri
from tune.report import figures, text
from tune.report.analysis import ranked, rungs
from tune.report.collect import SearchStory, collect
from tune.report.importance import Importances, importances
from tune.report.parallel_coordinates import ABSENT, MOST, Parallel, parallel

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


class Drawn(NamedTuple):
    """A picture of parallel coordinates in its SVG's box. axes: (x, its axis, [(y, label), …]); lines: (path, line)."""

    width: int
    height: int
    top: int
    bottom: int
    absent: float
    axes: list[tuple[float, Any, list[tuple[float, str]]]]
    lines: list[tuple[str, Any]]


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
    found = importances(story.space, story.history)
    budget, responses = figures.responses(story, found)
    weighed, trade_offs = figures.trade_offs(story)
    many = parallel(story)
    return {
        "story": story,
        "text": text,
        "metadata": metadata,
        "count": count,
        "best": story.history.best(),
        "measure": figures.title(story),
        "commands": commands(story),
        "train_best": train_best(story),
        "train": lambda number: f"metatrain train {shlex.quote(f'{story.where}/trials/{number:04}/config.yaml')}",
        "anytime": figures.anytime(story),
        "rungs": rungs(story.history),
        "parallel": _drawn(many) if many else None,
        "left_out": many.left_out if many else 0,
        "most": MOST,
        "importances": found,
        "bars": _bars(found),
        "responses": responses,
        "response_budget": budget,
        "weighed": weighed,
        "trade_offs": trade_offs,
        "copies": copies(story),
        "lineage": figures.lineage(story),
        "rows": rows(story),
        "hidden": max(0, len(story.history.trials) - TRIALS),
        "environment": metadata.environment(story.environment),
        "width": WIDTH,
        "height": HEIGHT,
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


def _bars(found: Importances | None) -> list[tuple[Any, float, float]]:
    """(importance, its bar, the end of what chance gives), both 0 to 1 of the longest."""
    parameters = found.parameters if found else ()
    longest = max((one.share for one in parameters), default=0.0) or 1.0
    return [(one, one.share / longest, min(1.0, one.chance / longest)) for one in parameters]


def _drawn(picture: Parallel) -> Drawn:
    """Axes a hundred and more apart, so that their marks can be read; a narrow screen scrolls."""
    count = len(picture.axes)
    apart = max(120.0, min(240.0, 760 / max(1, count - 1)))
    left, right, top, bottom = 60.0, 75.0, 46, 330
    x = [left + apart * number for number in range(count)]

    def y(place: float) -> float:
        return round(bottom - place * (bottom - top), 1)

    axes = [
        (round(at, 1), axis, [(y(tick.at), tick.label) for tick in axis.ticks])
        for at, axis in zip(x, picture.axes, strict=True)
    ]
    lines = [(_curve(x, [y(place) for place in line.places]), line) for line in picture.lines]
    width = math.ceil(left + apart * (count - 1) + right)
    return Drawn(width, math.ceil(y(ABSENT)) + 24, top, bottom, y(ABSENT), axes, lines)


def _curve(x: Sequence[float], y: Sequence[float]) -> str:
    """From axis to axis in level arcs, so that lines which meet on an axis can be told apart beyond it."""
    path = f"M{x[0]:.1f},{y[0]:.1f}"
    for i in range(1, len(x)):
        bend = 0.35 * (x[i] - x[i - 1])
        path += f"C{x[i - 1] + bend:.1f},{y[i - 1]:.1f} {x[i] - bend:.1f},{y[i]:.1f} {x[i]:.1f},{y[i]:.1f}"
    return path
