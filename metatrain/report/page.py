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
from metatrain.report.collect import AS_TRAINED, Story, collect, newest_step, settings_of
from metatrain.report.plots import Chart, draw_each, to_svg
from metatrain.runs import Run, lock_run, replace_text
from metatrain.settings import Config
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.types import Recorder

NAME = "report.html"


class Row(NamedTuple):
    """One learner in the table of results."""

    learner: str
    score: str
    loss: str
    steps: int
    tasks: str
    kind: str
    trained: bool


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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["to_svg"] = to_svg
    return environment


def _context(stories: Sequence[Story]) -> dict[str, Any]:
    labels = _labels(stories)
    one = len(stories) == 1
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
        "groups": _groups(stories, labels),
        "curves": draw_each(
            figures.training([(label, story.series) for label, story in zip(labels, stories, strict=True)])
        ),
        "adaptation": _adaptation(stories, labels),
        "environment": _beside([metadata.environment(story.environment) for story in stories]),
        "timing": _beside([metadata.timing(story) for story in stories]),
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


def _groups(stories: Sequence[Story], labels: Sequence[str]) -> list[Group]:
    return [
        Group(label, tested.name, [_row(row, number == 0) for number, row in enumerate(tested.rows)])
        for label, story in zip(labels, stories, strict=True)
        for tested in story.evaluations
    ]


def _row(row: Mapping[str, Any], trained: bool) -> Row:
    return Row(
        learner=text.called(row["learner"]),
        score=text.format_score(row),
        loss=f"{row['loss']:.4g}" if "loss" in row else "–",
        steps=max(row["curve"]["steps"], default=0) if "curve" in row else 0,
        tasks=text.count(row["tasks"]),
        kind=text.kind(row),
        trained=trained,
    )


def _adaptation(stories: Sequence[Story], labels: Sequence[str]) -> list[Chart]:
    """Draw the score after each inner step, for each evaluation in which a learner has inner steps: of one run every
    learner, of several the trained learner of each.
    """
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for label, story in zip(labels, stories, strict=True):
        for tested in story.evaluations:
            rows = [row for row in tested.rows if row.get("curve", {}).get("steps")]
            found.setdefault(tested.name, []).extend(
                [(label, row) for row in rows[:1] if row is tested.rows[0]]
                if len(stories) > 1
                else [(row["learner"].replace("_", " "), row) for row in rows]
            )
    return draw_each(
        [
            figures.adaptation(name, rows)
            for name, rows in found.items()
            if any(row["curve"]["steps"][-1] > 0 for _, row in rows)
        ]
    )
