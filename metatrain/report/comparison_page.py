"""Render the HTML page about a comparison (`metatrain.comparison`), from its plain values."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metatrain.metrics import METRICS
from metatrain.report import comparison_figures as figures
from metatrain.report import comparison_text as text
from metatrain.report.page import MOST_DRAWN, render_template
from metatrain.runs import replace_text

NAME = "compare.html"


def write(found: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write the page to `out`, by default in the working directory, and return where."""
    path = out or Path(NAME)
    replace_text(path, render(found))
    return path


def render(found: Mapping[str, Any]) -> str:
    """Return the page as HTML. All values are escaped."""
    return render_template(Path(__file__).parent, _context(found), "comparison.html")


def _context(found: Mapping[str, Any]) -> dict[str, Any]:
    headings = text.columns(found)
    drawn = {**found, "runs": found["runs"][:MOST_DRAWN]}
    return {
        "title": f"{len(found['runs'])} runs on the same tasks",
        "lead": lead(found),
        "found": found,
        "columns": [(name, "" if place < 2 or name == "group" else "number") for place, name in enumerate(headings)],
        "rows": text.rows(found),
        "pair_columns": [(name, "" if place in (0, 6) else "number") for place, name in enumerate(text.PAIR_COLUMNS)],
        "pair_rows": text.pair_rows(found),
        "notes": list(text.notes(found)),
        "also": [(one["name"], text.describe_tasks(one), ", ".join(one["order"])) for one in found["also"]],
        "differences": figures.differences(drawn),
        "adaptation": [*figures.by_inner_steps(drawn), *figures.by_seconds(drawn)],
        "calibration": figures.calibration(drawn),
        "calibration_table": text.calibration_table(found),
        "source_table": text.source_table(found),
        "training_table": text.training_table(found),
        "training": figures.training_and_test(drawn),
        "runs": [(run["label"], run["run_dir"], run["algorithm"], run["model"]) for run in found["runs"]],
        "undrawn": "" if len(drawn["runs"]) == len(found["runs"]) else f"Drawn are the best {MOST_DRAWN} runs.",
        "commands": [("Compare again", command(found))],
        "text": text,
    }


def lead(found: Mapping[str, Any]) -> list[str]:
    """Return the result in sentences."""
    metric, runs = METRICS[found["score"]], found["runs"]
    scores = ", ".join(
        f"{run['label']} {text.format_result(run['results'][run['kind']], metric)}"
        for run in runs
        if run["kind"] == found["kind"]
    )
    sentences = [text.introduction(found), f"By {metric.title}, best first: {scores}."]
    return [*sentences, text.summary_of_groups(found)] if found["pairs"] else sentences


def command(found: Mapping[str, Any]) -> str:
    """Return the command that makes the comparison again."""
    also = [word for given in found["asked"] for word in ("--also", given)]
    split = found["tasks"]["split"]
    places = sorted(found["runs"], key=lambda run: run["number"])
    words = [
        "metatrain",
        "compare",
        *(",".join([run["run_dir"], *run["settings"]]) for run in places),
        *found["overrides"],
        *also,
        *(() if split == "test" else ("--split", split)),
    ]
    return shlex.join(words)
