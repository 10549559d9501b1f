"""Render the HTML page about one or several runs."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from metatrain.errors import RunOwnedError
from metatrain.metrics import METRICS
from metatrain.report import figures, metadata, text
from metatrain.report.collect import AS_TRAINED, RunRecord, collect, newest_step, read_settings
from metatrain.report.plots import Panel, draw_each, to_svg
from metatrain.runs import Run, lock_run, replace_text
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.trust import require_chosen_places
from metatrain.types import Recorder

NAME = "report.html"
MOST_DRAWN = 24
"""Runs whose curves and pictures a page has: more curves cannot be told apart, and take minutes to draw."""


def write(homes: Sequence[Run], out: Path | None = None) -> Path:
    """Write the page about `homes` to `out` (see `save_page`), and return where. ValueError: see `collect`."""
    few = len(homes) <= MOST_DRAWN
    records = [collect(home, drawn=few) for home in homes]
    for number in () if few else drawn_runs(records):
        records[number] = collect(homes[number])
    return save_page(homes, render(records), out)


def save_page(homes: Sequence[Run], html: str, out: Path | None) -> Path:
    """Write a page to `out`: by default in the folder of a single run or search, in the working directory for several
    or one in object storage. Return where.
    """
    inside = len(homes) == 1 and homes[0].storage is None
    path = out or (homes[0].path / NAME if inside else Path(NAME))
    replace_text(path, html)
    return path


def record(
    home: Run, page: Path, tracked: Callable[[Mapping[str, Any], Run], Sequence[Recorder]], trust: bool = False
) -> str | None:
    """Hand the page to where the run is recorded beyond its folder; a reason why not, where it is being trained.

    Imports nothing that the run names. ValueError: this user did not make the run, and did not choose its address.
    ConnectionError: the tracking server refuses the page or cannot be reached; the page stays where it is.
    """
    settings, newest = read_settings(home), newest_step(home)
    require_chosen_places(home.config, {"tracking.uri": settings.get("tracking.uri")}, (), trust)
    total = settings.get("outer.steps")
    if not isinstance(total, int):
        raise ValueError(f"{home.config}: outer.steps: is no number of steps: restore that file")
    try:
        with lock_run(home, guest=True):
            recorder = CompositeRecorder(tracked(settings, home))
            recorder.start(newest, total)
            recorder.artifact(page)
            recorder.close("finished" if newest == total else "interrupted")
    except RunOwnedError:
        return f"{home.run_id} is being trained: its page is not in MLflow yet, report again when it is done"
    except OSError as error:
        raise ConnectionError(f"{page} is written, but not kept in MLflow: {error}") from error
    return None


def render(records: Sequence[RunRecord]) -> str:
    """Return the page as HTML. Everything from a run is escaped."""
    return render_template(Path(__file__).parent, _context(records))


def render_template(folder: Path, context: Mapping[str, Any], name: str = "page.html") -> str:
    """Render the template `name` of `folder`, which may use the others of this package. All values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"draw_each": draw_each, "to_svg": to_svg}
    return environment.get_template(name).render(context)


def _context(records: Sequence[RunRecord]) -> dict[str, Any]:
    labels, one = _labels(records), len(records) == 1
    runs = list(zip(labels, records, strict=True))
    differences = _differences(records)
    drawn = [runs[number] for number in drawn_runs(records)]
    evaluations = [
        (tested.name if one else f"{label}, {tested.name}", tested.rows)
        for label, record in runs
        for tested in record.evaluations
    ]
    return {
        "title": records[0].name if one else f"{len(records)} runs compared",
        "one": one,
        "runs": runs,
        "run_columns": [("", ""), *(("" if one else label, "long") for label in labels)],
        "text": text,
        "metadata": metadata,
        "as_trained": AS_TRAINED,
        "mismatch": text.explain_mismatch(records),
        "comparison": text.comparison(records, labels),
        "differences": differences,
        "differing": [key for key, *_ in differences if key != "runs.name"],
        "groups": [(heading, [_cells(row) for row in rows]) for heading, rows in evaluations],
        "metrics": _other_metrics(evaluations),
        "by_source": [
            (heading, *_by_source(rows)) for heading, rows in evaluations if rows and rows[0].get("by_source")
        ],
        "curves": figures.training([(label, record.series) for label, record in drawn]),
        "drawn": drawn,
        "undrawn": text.explain_drawn(len(drawn), len(runs)),
        "adaptation": _adaptation(drawn),
        "calibration": [panel for name, rows in _rows_of(drawn).items() for panel in figures.calibration(name, rows)],
        "environment": _beside([metadata.environment(record.environment) for record in records]),
        "timing": _beside([metadata.timing(record) for record in records]),
    }


def drawn_runs(records: Sequence[RunRecord]) -> list[int]:
    """Return the numbers of the runs that are drawn, in order: all, or the `MOST_DRAWN` with the best results."""
    return sorted(text.best_first(records)[:MOST_DRAWN])


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """Return the runs' names, or their ids where two have one name."""
    names = Counter(record.name for record in records)
    return [record.name if names[record.name] == 1 else record.run_id for record in records]


def _beside(facts: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return a row for each key: the key, then its value in each run."""
    keys = dict.fromkeys(key for known in facts for key in known)
    return [[key, *(known.get(key, "–") for known in facts)] for key in keys]


def _differences(records: Sequence[RunRecord]) -> list[list[str]]:
    """Return a row for each setting that the runs do not share."""
    plain = [{key: _spell(value) for key, value in record.settings.items()} for record in records]
    return [row for row in _beside(plain) if len(set(row[1:])) > 1]


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one learner in the table of results."""
    return [
        text.learner_name(row["learner"]),
        text.format_score(row),
        text.format_over_classes(row),
        "–" if row.get("loss") is None else f"{row['loss']:.4g}",
        str(max(row["curve"]["steps"], default=0) if "curve" in row else 0),
        text.count(row["tasks"]),
        text.kind(row),
    ]


def _other_metrics(evaluations: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """Return the table of the metrics beside the score and the loss: columns, and (heading, rows) of each evaluation.

    No groups where there are no others: of regression, the score and the loss are all there is.
    """
    rows = [row for _, found in evaluations for row in found]
    scores = {"loss", *(row["score"] for row in rows)}
    names = [name for name in METRICS if name not in scores and any(name in row["metrics"] for row in rows)]
    columns = [("learner", ""), *((METRICS[name].title, "number") for name in names)]

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [text.learner_name(row["learner"]), *(text.format_metric(row, name) for name in names)]

    groups = [(heading, [cells(row) for row in found]) for heading, found in evaluations] if names else []
    return {"columns": columns, "groups": groups}


def _by_source(rows: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Return the table of scores by source of a mixture: columns, and a row for each learner."""
    sources = list(rows[0]["by_source"])
    columns = [("learner", ""), *((name, "number") for name in sources), ("kind", "")]
    cells = [
        [text.learner_name(row["learner"]), *(text.format_source(row, name) for name in sources), text.kind(row)]
        for row in rows
    ]
    return columns, cells


def _other_kind(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Tell the second row of the trained learner, normalised the other way, from its first."""
    return f", {text.kind(row)}" if row["learner"] == rows[0]["learner"] and row is not rows[0] else ""


def _adaptation(runs: Sequence[tuple[str, RunRecord]]) -> list[Panel]:
    """Return the score after each inner step, for each evaluation in which a learner has inner steps."""
    found = {
        name: [(label, row) for label, row in rows if row.get("curve", {}).get("steps")]
        for name, rows in _rows_of(runs).items()
    }
    return [
        figures.adaptation(name, rows)
        for name, rows in found.items()
        if any(row["curve"]["steps"][-1] > 0 for _, row in rows)
    ]


def _rows_of(runs: Sequence[tuple[str, RunRecord]]) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """Return what is drawn of each evaluation: of one run every learner, of several the trained learner of each."""
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for label, record in runs:
        for tested in record.evaluations:
            found.setdefault(tested.name, []).extend(
                [(label, row) for row in tested.rows[:1]]
                if len(runs) > 1
                else [(row["learner"].replace("_", " ") + _other_kind(row, tested.rows), row) for row in tested.rows]
            )
    return found
