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
from metatrain.report.collect import AS_TRAINED, RunRecord, collect, newest_step, settings_of
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
    """Write the page about `homes` to `out`: by default in the folder of a single run, in the working directory for
    several or one that is kept elsewhere. Returns where. ValueError: see `collect`.
    """
    beside = len(homes) == 1 and homes[0].storage is None
    path = out or (homes[0].path / NAME if beside else Path(NAME))
    replace_text(path, render([collect(home) for home in homes]))
    return path


def record(home: Run, page: Path, tracked: Callable[[Config, Run], Sequence[Recorder]]) -> str | None:
    """Hand the page to where the run is recorded beyond its folder; a reason why not, where it is being trained.

    ConnectionError: the tracking server refuses the page or cannot be reached; the page stays where it is.
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


def render(records: Sequence[RunRecord]) -> str:
    """Return the page as HTML. Everything from a run is escaped."""
    return templates().get_template("page.html").render(_context(records))


def templates(*folders: Path) -> jinja2.Environment:
    """Load the templates of `folders`, the first before the others, and then those of this page; all of them escape."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["to_svg"] = to_svg
    return environment


def _context(records: Sequence[RunRecord]) -> dict[str, Any]:
    labels = _labels(records)
    one = len(records) == 1
    differences = _differences(records)
    return {
        "title": records[0].name if one else f"{len(records)} runs compared",
        "one": one,
        "runs": list(zip(labels, records, strict=True)),
        "text": text,
        "metadata": metadata,
        "as_trained": AS_TRAINED,
        "mismatch": text.explain_mismatch(records),
        "comparison": text.comparison(records, labels),
        "differences": differences,
        "differing": [row.key for row in differences if row.key != "runs.name"],
        "groups": _groups(records, labels),
        "curves": draw_each(
            figures.training([(label, record.series) for label, record in zip(labels, records, strict=True)])
        ),
        "adaptation": _adaptation(records, labels),
        "environment": _beside([metadata.environment(record.environment) for record in records]),
        "timing": _beside([metadata.timing(record) for record in records]),
    }


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """Return the runs' names, or their ids where two have one name."""
    names = Counter(record.name for record in records)
    return [record.name if names[record.name] == 1 else record.run_id for record in records]


def _beside(facts: Sequence[Mapping[str, str]]) -> list[Difference]:
    """Set what is known of each run side by side, key by key."""
    keys = dict.fromkeys(key for known in facts for key in known)
    return [Difference(key, [known.get(key, "–") for known in facts]) for key in keys]


def _differences(records: Sequence[RunRecord]) -> list[Difference]:
    plain = [{key: _as_text(value) for key, value in record.settings.items()} for record in records]
    return [row for row in _beside(plain) if len(set(row.values)) > 1]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _groups(records: Sequence[RunRecord], labels: Sequence[str]) -> list[Group]:
    return [
        Group(label, tested.name, [_row(row, number == 0) for number, row in enumerate(tested.rows)])
        for label, record in zip(labels, records, strict=True)
        for tested in record.evaluations
    ]


def _row(row: Mapping[str, Any], trained: bool) -> Row:
    return Row(
        learner=text.learner_name(row["learner"]),
        score=text.format_score(row),
        loss=f"{row['loss']:.4g}" if "loss" in row else "–",
        steps=max(row["curve"]["steps"], default=0) if "curve" in row else 0,
        tasks=text.count(row["tasks"]),
        kind=text.kind(row),
        trained=trained,
    )


def _adaptation(records: Sequence[RunRecord], labels: Sequence[str]) -> list[Chart]:
    """Draw the score after each inner step, for each evaluation in which a learner has inner steps: of one run every
    learner, of several the trained learner of each.
    """
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for label, record in zip(labels, records, strict=True):
        for tested in record.evaluations:
            rows = [row for row in tested.rows if row.get("curve", {}).get("steps")]
            found.setdefault(tested.name, []).extend(
                [(label, row) for row in rows[:1] if row is tested.rows[0]]
                if len(records) > 1
                else [(row["learner"].replace("_", " "), row) for row in rows]
            )
    return draw_each(
        [
            figures.adaptation(name, rows)
            for name, rows in found.items()
            if any(row["curve"]["steps"][-1] > 0 for _, row in rows)
        ]
    )
