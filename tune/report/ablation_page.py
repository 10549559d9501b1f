"""Render the HTML page about an ablation (`tune.ablation.results`), from its plain values."""

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatrain.metrics import METRICS
from metatrain.report import comparison_text
from metatrain.report.page import render_template
from metatrain.report.plots import GREY, Panel, colour, draw_points, shorten
from metatrain.yaml_config import dump_inline
from tune.report import ablation_text as text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "ablation.html"
MOST_DRAWN = 60


def render(found: Mapping[str, Any]) -> str:
    """Return the page as HTML. All values are escaped."""
    return render_template(Path(__file__).parent, _context(found), "ablation.html")


def _context(found: Mapping[str, Any]) -> dict[str, Any]:
    headings, rows = text.columns(found), text.rows(found)
    by_label = {row[0]: row for row in rows}
    alone = {label for axis in found["axes"] for label in axis["labels"]}
    groups = [(_heading(axis), [by_label[label] for label in axis["labels"]]) for axis in found["axes"]]
    rest = [row for row in rows[1:] if row[0] not in alone]
    return {
        "title": found["name"],
        "lead": [text.introduction(found), *lead(found)],
        "columns": [(name, "" if place in (0, len(headings) - 1) else "number") for place, name in enumerate(headings)],
        "base": rows[0],
        "groups": [*((h, r) for h, r in groups if r), *([("several changes", rest)] if rest else [])],
        "notes": list(text.notes(found)),
        "differences": _panels(found),
        "commands": commands(found),
    }


def _heading(axis: Mapping[str, Any]) -> str:
    return f"{axis['name']}, {dump_inline(axis['own'])} in the base"


def lead(found: Mapping[str, Any]) -> list[str]:
    """Return the result in sentences: what is better than the base, and what is worse."""
    metric = METRICS[found["score"]]
    told: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for row in found["variants"]:
        if row["difference"]:
            difference = row["difference"]
            shown = comparison_text.format_difference(difference["value"], difference["ci95"], metric)
            told[text.verdict(difference, metric)].append(f"{row['label']} ({shown})")
    score = found["variants"][0]["score"]
    sentences = [f"The base has {metric.title} {comparison_text.format_result(score, metric)}."]
    return sentences + [f"{verdict.capitalize()}: {', '.join(which)}." for verdict, which in told.items() if which]


def _panels(found: Mapping[str, Any]) -> list[Panel]:
    """Return the differences from the base with their intervals."""
    metric = METRICS[found["score"]]
    rows = [row for row in found["variants"] if row["difference"]][:MOST_DRAWN]
    if not rows:
        return []
    unit = "points" if metric.unit == "%" else metric.unit
    told = "; ".join(
        f"{row['label']}: "
        f"{comparison_text.format_difference(row['difference']['value'], row['difference']['simultaneous'], metric)}"
        for row in rows
    )
    title = f"Difference from the base in {metric.title}, intervals for all changes at once"
    draw = partial(_draw, rows=rows, scale=metric.scale, unit=unit)
    return [Panel(title, draw, unit, (5.2, 1.2 + 0.28 * len(rows)), f"{title}. {told}.")]


def _draw(axes: "Axes", rows: Sequence[Mapping[str, Any]], scale: float, unit: str) -> None:
    axes.axvline(0, color=GREY, linewidth=1)
    several = any(len(row["difference"]["seeds"]["values"]) > 1 for row in rows)
    for place, row in enumerate(rows):
        difference = row["difference"]
        look = colour(1 if difference["apart"] else 0)
        value, half, alone = (scale * difference[key] for key in ("value", "simultaneous", "ci95"))
        axes.plot([value - half, value + half], [place, place], color=look, linewidth=1.6)
        axes.plot([value - alone, value + alone], [place, place], color=look, linewidth=4, solid_capstyle="butt")
        axes.plot([value], [place], color=look, marker="o", markersize=5)
        if several:
            seeds = [scale * one for one in difference["seeds"]["values"]]
            draw_points(axes, seeds, [place + 0.22] * len(seeds), "each seed", 2)
    axes.set_yticks(range(len(rows)), [shorten(row["label"]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"difference{f' ({unit})' if unit else ''}")


def commands(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the commands to go on with."""
    folder = found["place"]
    runs = [f"{folder}/trials/{number:04d}" for number in found["trained"]]
    return [
        ("Make this comparison again, or go on", f"metatrain ablate --resume {shlex.quote(folder)}"),
        ("Compare all runs: calibration, adaptation, other tasks", shlex.join(["metatrain", "compare", *runs])),
    ]
