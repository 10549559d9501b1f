"""Render the HTML page about one or several runs."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from metatrain.config.load import load_config
from metatrain.errors import RunOwnedError
from metatrain.report import figures, metadata, text
from metatrain.report.charts import HEIGHT, WIDTH
from metatrain.report.collect import AS_TRAINED, Story, collect, newest_step, settings_of
from metatrain.runs import Run, lock_run, replace_text
from metatrain.settings import Config
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.types import Recorder

NAME = "report.html"


class Row(NamedTuple):
    """One learner in the table of results. `dot`, `low`, `high`: the score and its interval, 0 to 1 along the axis."""

    learner: str
    score: str
    loss: str
    steps: int
    tasks: str
    kind: str
    trained: bool
    dot: float
    low: float
    high: float


class Group(NamedTuple):
    """The rows of one evaluation of one run."""

    run: str
    evaluation: str
    rows: list[Row]


class Difference(NamedTuple):
    """A setting that the runs do not share, and its value in each."""

    key: str
    values: list[str]


def write(homes: Sequence[Run], out: Path | None = None) -> Path:
    """The page about `homes`, whole at `out`: by default in the folder of a single run, in the working directory for
    several or one that is kept elsewhere. Returns where. ValueError: see `collect`.
    """
    beside = len(homes) == 1 and homes[0].storage is None
    path = out or (homes[0].path / NAME if beside else Path(NAME))
    replace_text(path, render([collect(home) for home in homes]))
    return path


def record(home: Run, page: Path, tracked: Callable[[Config, Run], Sequence[Recorder]]) -> str | None:
    """Hand the page to where the run is recorded beyond its folder; a reason why not, where it is being trained.

    ConnectionError: the tracking server does not do its part; the page stays where it is.
    """
    if settings_of(home).get("tracking.uri") is None:
        return None
    config, newest = load_config(home.config), newest_step(home)
    try:
        with lock_run(home, guest=True):
            recorder = CompositeRecorder(tracked(config, home))
            recorder.start(newest, config.outer.steps)
            recorder.artifact(page)
            recorder.close("finished" if newest == config.outer.steps else "interrupted")
    except RunOwnedError:
        return f"{home.run_id} is being trained: its page is not in MLflow yet, report again when it is done"
    except OSError as error:
        raise ConnectionError(f"{page} is written, but not kept in MLflow: {error}") from error
    return None


def render(stories: Sequence[Story]) -> str:
    """The page as HTML. Everything from a run is escaped."""
    return templates().get_template("page.html").render(_context(stories))


def templates(*folders: Path) -> jinja2.Environment:
    """The templates of `folders`, the first before the others, and then those of this page; all of them escape."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(stories: Sequence[Story]) -> dict[str, Any]:
    labels = _labels(stories)
    one = len(stories) == 1
    axes = _axes(stories)
    differences = _differences(stories)
    return {
        "title": stories[0].name if one else f"{len(stories)} runs compared",
        "one": one,
        "runs": list(zip(labels, stories, strict=True)),
        "text": text,
        "metadata": metadata,
        "as_trained": AS_TRAINED,
        "unlike": text.unlike(stories),
        "comparison": text.comparison(stories, labels),
        "differences": differences,
        "differing": [row.key for row in differences if row.key != "runs.name"],
        "groups": _groups(stories, labels, axes),
        "axis": "; ".join("0 to 100 %" if score == "accuracy" else f"0 to {end:.3g}" for score, end in axes.items()),
        "curves": figures.training(stories, labels),
        "adaptation": figures.adaptation(stories, labels),
        "environment": _beside([metadata.environment(story.environment) for story in stories]),
        "timing": _beside([metadata.timing(story) for story in stories]),
        "width": WIDTH,
        "height": HEIGHT,
    }


def _labels(stories: Sequence[Story]) -> list[str]:
    """The runs' names, or their ids where two have one name."""
    names = Counter(story.name for story in stories)
    return [story.name if names[story.name] == 1 else story.run_id for story in stories]


def _beside(facts: Sequence[Mapping[str, str]]) -> list[Difference]:
    """What is known of each run, key by key."""
    keys = dict.fromkeys(key for known in facts for key in known)
    return [Difference(key, [known.get(key, "–") for known in facts]) for key in keys]


def _differences(stories: Sequence[Story]) -> list[Difference]:
    plain = [{key: _as_text(value) for key, value in story.settings.items()} for story in stories]
    return [row for row in _beside(plain) if len(set(row.values)) > 1]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _groups(stories: Sequence[Story], labels: Sequence[str], full: Mapping[str, float]) -> list[Group]:
    return [
        Group(label, tested.name, [_row(row, number == 0, full) for number, row in enumerate(tested.rows)])
        for label, story in zip(labels, stories, strict=True)
        for tested in story.evaluations
    ]


def _axes(stories: Sequence[Story]) -> dict[str, float]:
    """Where the axis of each score ends that begins at 0: accuracies at 1, errors at the largest of them."""
    every = [row for story in stories for tested in story.evaluations for row in tested.rows]
    ends = {
        "accuracy": 1.0,
        "mse": max((row["mse"] + row["ci95"] for row in every if row["score"] == "mse"), default=1),
    }
    return {score: end or 1.0 for score, end in ends.items() if any(row["score"] == score for row in every)}


def _row(row: Mapping[str, Any], trained: bool, full: Mapping[str, float]) -> Row:
    value, margin = row[row["score"]], row["ci95"]
    along = [min(1.0, max(0.0, at / full[row["score"]])) for at in (value, value - margin, value + margin)]
    return Row(
        learner=text.called(row["learner"]),
        score=text.score(row),
        loss=f"{row['loss']:.4g}" if "loss" in row else "–",
        steps=max(row["curve"]["steps"], default=0) if "curve" in row else 0,
        tasks=text.count(row["tasks"]),
        kind=text.kind(row),
        trained=trained,
        dot=along[0],
        low=along[1],
        high=along[2],
    )
