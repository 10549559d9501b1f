"""Draw a comparison: differences, scores by inner steps and by seconds, calibration, training and test classes."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from metatrain.metrics import METRICS
from metatrain.report import figures
from metatrain.report.comparison_text import format_difference, format_seconds
from metatrain.report.plots import COLOURS, GREY, INK, Panel, colour, draw_curve, draw_points, set_log, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PAIRS = 28
"""Differences that are drawn; of more, those with the best run alone."""


def differences(found: Mapping[str, Any]) -> list[Panel]:
    """Return the differences with their intervals, those of all pairs at once; none for a single run."""
    pairs = found["pairs"]
    if len(pairs) > MOST_PAIRS:
        pairs = [pair for pair in pairs if pair["first"] == found["runs"][0]["label"]]
    if not pairs:
        return []
    metric = METRICS[found["score"]]
    unit = "points" if metric.unit == "%" else metric.unit
    told = "; ".join(
        f"{pair['first']} − {pair['second']}: {format_difference(pair['value'], pair['simultaneous'], metric)}"
        for pair in pairs
    )
    draw = partial(_draw_differences, pairs=pairs, scale=metric.scale, unit=unit)
    title = f"Difference in {metric.title}, intervals for all pairs at once"
    return [Panel(title, draw, unit, (5.2, 0.9 + 0.28 * len(pairs)), f"{title}. {told}.")]


def _draw_differences(axes: "Axes", pairs: Sequence[Mapping[str, Any]], scale: float, unit: str) -> None:
    axes.axvline(0, color=GREY, linewidth=1)
    for place, pair in enumerate(pairs):
        look = colour(1 if pair["apart"] else 0)
        value, half, alone = (scale * pair[key] for key in ("value", "simultaneous", "ci95"))
        axes.plot([value - half, value + half], [place, place], color=look, linewidth=1.6)
        axes.plot([value - alone, value + alone], [place, place], color=look, linewidth=4, solid_capstyle="butt")
        axes.plot([value], [place], color=look, marker="o", markersize=5)
    axes.set_yticks(range(len(pairs)), [shorten(f"{pair['first']} − {pair['second']}", 60) for pair in pairs])
    for label, pair in zip(axes.get_yticklabels(), pairs, strict=True):
        label.set_color(INK if pair["apart"] else COLOURS["soft"])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlabel(f"difference{f' ({unit})' if unit else ''}")


def by_inner_steps(found: Mapping[str, Any]) -> list[Panel]:
    """Return the score after each inner step."""
    rows = [(run["label"], {"score": found["score"], **run["results"][run["kind"]]}) for run in found["runs"]]
    return [figures.adaptation("by inner steps", rows)]


def by_seconds(found: Mapping[str, Any]) -> list[Panel]:
    """Return the score by the seconds that adaptation took; none where it was not measured."""
    timed = [run for run in found["runs"] if run["adaptation"]]
    if not timed:
        return []
    metric = METRICS[found["score"]]
    size = (5.2, 3.6 + 0.2 * max(0, len(timed) - 3))
    told = "; ".join(
        f"{run['label']}: {format_seconds(run['adaptation']['seconds'][-1])} after "
        f"{run['adaptation']['steps'][-1]} inner steps"
        for run in timed
    )
    title = f"{metric.label}, by seconds of adaptation (measured here)"
    return [Panel(title, partial(_draw_by_seconds, runs=timed, metric=metric), metric.unit, size, f"{title}. {told}.")]


def _draw_by_seconds(axes: "Axes", runs: Sequence[Mapping[str, Any]], metric: Any) -> None:
    every = []
    for look, run in enumerate(runs, start=1):
        curve, timing = run["results"][run["kind"]]["curve"], run["adaptation"]
        at = dict(zip(timing["steps"], timing["seconds"], strict=True))
        # Before the first step there is nothing to time but the embedding of the support set, if that.
        points = [
            (1000 * at[step], metric.scale * mean)
            for step, mean in zip(curve["steps"], curve["mean"], strict=True)
            if step in at and (step > 0 or len(curve["steps"]) == 1)
        ]
        if not points:
            continue
        x, y = (list(values) for values in zip(*points, strict=True))
        every += x
        if len(points) == 1:
            draw_points(axes, x, y, run["label"], look)
        else:
            draw_curve(axes, x, y, run["label"], look)
    if every and min(every) > 0 and max(every) > 5 * min(every):
        set_log(axes.xaxis, every)
    axes.set_xlabel("milliseconds of adaptation, one task, one thread")
    axes.set_ylabel(metric.label)


def calibration(found: Mapping[str, Any]) -> list[Panel]:
    """Return how often what was predicted came true; none for predictions without probabilities."""
    return figures.calibration("test tasks", [(run["label"], run["results"][run["kind"]]) for run in found["runs"]])


def training_and_test(found: Mapping[str, Any]) -> list[Panel]:
    """Return the scores on classes trained on beside those on held-out ones; none where no run has both."""
    runs = [run for run in found["runs"] if run["gap"] is not None]
    if not runs:
        return []
    metric = METRICS[found["score"]]
    told = "; ".join(
        f"{run['label']}: {format_difference(run['gap']['value'], run['gap']['ci95'], metric)}" for run in runs
    )
    split = found["tasks"]["split"]
    title = f"{metric.label} on training and {split} classes"
    draw = partial(_draw_training_and_test, runs=runs, metric=metric, split=split)
    return [Panel(title, draw, metric.unit, (5.2, 1.2 + 0.28 * len(runs)), f"{title}. Gap: {told}.")]


def _draw_training_and_test(axes: "Axes", runs: Sequence[Mapping[str, Any]], metric: Any, split: str) -> None:
    for place, run in enumerate(runs):
        both = [run["results"].get(run["training_classes"]["kind"]), run["training_classes"]]
        if both[0] is None:
            continue
        values = [metric.scale * one["value"] for one in both]
        halves = [metric.scale * (0.0 if math.isnan(one["ci95"]) else one["ci95"]) for one in both]
        axes.plot(values, [place, place], color=COLOURS["line"], linewidth=2, zorder=1)
        for value, half, look, name in zip(values, halves, (1, 2), (split, "training"), strict=True):
            axes.plot([value - half, value + half], [place, place], color=colour(look), linewidth=4, alpha=0.35)
            label = f"{name} classes" if place == 0 else None
            style: dict[str, Any] = {"marker": "o" if look == 1 else "D", "markersize": 6, "linestyle": "none"}
            axes.plot([value], [place], color=colour(look), label=label, **style)
    axes.set_yticks(range(len(runs)), [shorten(run["label"]) for run in runs])
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.set_xlabel(metric.label)
