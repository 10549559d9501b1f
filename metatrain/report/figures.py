"""Figures of runs: training and validation, the score after each inner step, calibration, a fitted curve."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from metatrain.evaluation.predictions import TaskPredictions
from metatrain.metrics import METRICS, PRIMARY, Metric
from metatrain.report.plots import (
    COLOURS,
    DASHES,
    GREY,
    INK,
    ORANGE,
    Chart,
    Panel,
    draw_curve,
    draw_panels,
    set_log,
    set_whole,
)
from metatrain.report.series import Series, smooth, spans_decades, thin
from metatrain.report.text import format_over_classes, format_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1000
"""No curve has more: there are no more pixels to show them."""

Labelled = Sequence[tuple[str, Mapping[str, Series]]]
"""Runs by their labels, with their metrics by key."""


LOSS = METRICS["loss"]


def training(runs: Labelled) -> list[Panel]:
    """Return loss and primary metric by outer step: of one run training and validation together, of several apart.

    Training is smoothed, of one run with the raw values behind; validation has the 95 % interval of its score.
    """
    scores = {score for _, series in runs if (score := _score_of(series)) is not None}
    drawn = (LOSS, *(METRICS[name] for name in PRIMARY if name in scores))
    together = [(f"{metric.label}", metric, ("train", "validation")) for metric in drawn]
    apart = [
        (f"{title}: {metric.label[0].lower()}{metric.label[1:]}", metric, (split,))
        for metric in drawn
        for split, title in (("train", "Training"), ("validation", "Validation"))
    ]
    size = (5.2, 3.6 + 0.2 * max(0, len(runs) - 3))
    return [
        Panel(title, partial(_draw_training, runs=runs, metric=metric, splits=splits), metric.unit, size)
        for title, metric, splits in (together if len(runs) == 1 else apart)
        if any(_find(series, metric, split) for _, series in runs for split in splits)
    ]


def _score_of(series: Mapping[str, Series]) -> str | None:
    """Return the name of the primary metric that a run recorded; None before it has recorded any."""
    return next((name for name in PRIMARY if {f"train/{name}", f"validation/{name}"} & series.keys()), None)


def _find(series: Mapping[str, Series], metric: Metric, split: str) -> Series | None:
    """Return what a run recorded of a metric. For regression the loss is the score, and is drawn once."""
    if metric is LOSS and series.keys() & {"train/mse", "validation/mse"}:
        return None
    points = series.get(f"{split}/{metric.name}")
    return points.scale(metric.scale) if points else None


def _draw_training(axes: "Axes", runs: Labelled, metric: Metric, splits: Sequence[str]) -> None:
    values: list[float] = []
    for number, (label, series) in enumerate(runs, start=1):
        for look, split in enumerate(splits):
            points = _find(series, metric, split)
            if points is None:
                continue
            values += points.values
            name, look = (label, number) if len(runs) > 1 else ("training" if split == "train" else split, look)
            if split == "train":
                if len(runs) == 1:
                    axes.plot(*thin(points, POINTS), color=COLOURS["c0"], alpha=0.4, linewidth=0.7)
                means = smooth(points.values, max(1, len(points.values) // 25))
                draw_curve(axes, *thin(Series(points.steps, means), POINTS), name, look)
            else:
                margins = _margins(series, points, metric)
                draw_curve(axes, *thin(points, POINTS), name, look, thin(margins, POINTS).values if margins else ())
    axes.set_xlabel("outer step")
    axes.set_ylabel(metric.label)
    set_whole(axes.xaxis)
    if metric.scale == 1.0 and spans_decades(values):
        set_log(axes.yaxis, values)


def _margins(series: Mapping[str, Series], points: Series, metric: Metric) -> Series | None:
    """Return half the width of the score's 95 % interval at each point; None where it was not recorded."""
    if metric is LOSS or "validation/ci95" not in series:
        return None
    at = dict(zip(*series["validation/ci95"], strict=True))
    return Series(points.steps, [metric.scale * at.get(step, math.nan) for step in points.steps])


def adaptation(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Panel:
    """Return the score after 0, 1, … k inner steps, of labelled rows of an evaluation that are scored alike.

    A row has "score" (the name of a metric) and "curve": {"steps", "mean", "ci95"}. A learner without inner steps is a
    level line. ValueError: the three lists of a curve differ in length.
    """
    if any(len({len(values) for values in row["curve"].values()}) > 1 for _, row in rows):
        raise ValueError("an adaptation curve needs as many means and intervals as steps: evaluate the run again")
    metric = METRICS[rows[0][1]["score"]]
    alike = [(label, row["curve"]) for label, row in rows if row["score"] == metric.name]
    size = (5.2, 3.6 + 0.2 * max(0, len(alike) - 3))
    return Panel(f"{metric.label}, {title}", partial(_draw_adaptation, metric=metric, curves=alike), metric.unit, size)


def _draw_adaptation(axes: "Axes", metric: Metric, curves: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    last = max(curve["steps"][-1] for _, curve in curves)
    for look, (label, curve) in enumerate(curves, start=1):
        steps, mean, ci95 = curve["steps"], curve["mean"], curve["ci95"]
        if len(steps) == 1 and last > 0:
            label, steps, mean, ci95 = f"{label}, no inner steps", [0, last], 2 * mean, 2 * ci95
        known = [math.nan if half is None else half for half in ci95]
        scaled, margin = ([metric.scale * value for value in values] for values in (mean, known))
        draw_curve(axes, steps, scaled, label, look, margin)
    axes.set_xlabel("inner steps")
    axes.set_ylabel(metric.label)
    set_whole(axes.xaxis)


def calibration(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Panel]:
    """Return a panel of how often what was predicted came true, by the probability that was predicted for it.

    Of classes it is the share right by confidence, of densities the share of values below each predicted quantile.
    rows: of an evaluation, with their labels; those without "calibration" are left out, and no panel where all are.
    """
    known = [(label, points) for label, row in rows if (points := _calibration_points(row))]
    if not known:
        return []
    classes = not any("quantile_error" in row["metrics"] for _, row in rows)
    axes = ("confidence: greatest probability, mean of its bin (%)", "right (%)")
    names = axes if classes else ("predicted quantile (%)", "values below it (%)")
    size = (5.2, 3.6 + 0.2 * max(0, len(known) - 3))
    return [Panel(f"Calibration, {title}", partial(_draw_calibration, curves=known, names=names), "%", size)]


def _calibration_points(row: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return predicted and observed shares, in %, of bins with more than one query in a thousand."""
    curve = row.get("calibration") or {"predicted": (), "observed": (), "share": ()}
    return [
        (100 * predicted, 100 * observed)
        for predicted, observed, share in zip(curve["predicted"], curve["observed"], curve["share"], strict=True)
        if share >= 1e-3
    ]


def _draw_calibration(
    axes: "Axes", curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], names: tuple[str, str]
) -> None:
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    for look, (label, points) in enumerate(curves, start=1):
        x, y = (list(values) for values in zip(*points, strict=True))
        draw_curve(axes, x, y, label, look)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])


def evaluation_chart(evaluation: Mapping[str, Any]) -> Chart:
    """Draw adaptation and calibration of the learner of one evaluation, whose "split", "tasks" and final score are in
    the title.
    """
    title = f"{evaluation['split']}, {evaluation['tasks']} tasks: {format_score(evaluation)}"
    if None not in (evaluation.get("ci95_classes"), evaluation.get("classes")):
        title += f" over tasks, {format_over_classes(evaluation)} over {evaluation['classes']} classes"
    rows = [(evaluation["learner"], evaluation)]
    calibrated = calibration("all queries", rows)
    if not calibrated:
        return draw_panels([adaptation(title, rows)])
    chart = draw_panels([adaptation("by inner steps", rows), *calibrated])
    chart.figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK).set_parse_math(False)
    return chart._replace(title=title, description=f"{title}. {chart.description}")


def fit(shown: TaskPredictions, title: str) -> Chart:
    """Draw a function of one number as a learner fits it: the target, the support points, and the fit after some of
    the inner steps (`fitted_steps`). Support and queries: x [n, 1], y [n, 1].
    """
    steps = fitted_steps(len(shown.predictions) - 1)
    errors = [float((shown.predictions[step] - shown.episode.query.y).square().mean()) for step in steps]
    after = f"mean squared error {errors[-1]:.3g} after {steps[-1]} inner steps, {errors[0]:.3g} before"
    points = len(shown.episode.support.x)
    description = f"{title}: the target curve, {points} support points and the fits; {after}"
    draw = partial(_draw_fit, shown=shown, errors=dict(zip(steps, errors, strict=True)))
    return draw_panels([Panel(title, draw, size=(5.6, 4.2), description=description)])


def _draw_fit(axes: "Axes", shown: TaskPredictions, errors: Mapping[int, float]) -> None:
    order = shown.episode.query.x[:, 0].argsort()
    x, target = (part[order, 0].tolist() for part in shown.episode.query)
    axes.plot(x, target, color=ORANGE, linewidth=4, alpha=0.45, solid_capstyle="round", label="target")
    for number, (step, error) in enumerate(errors.items(), start=1):
        look = 1 if step == max(errors) else 0
        dash = DASHES[0] if look else DASHES[number]
        label = f"{step} {'step' if step == 1 else 'steps'}, mse {error:.3g}"
        fitted = shown.predictions[step][order, 0].tolist()
        axes.plot(x, fitted, color=COLOURS[f"c{look}"], linestyle=dash, linewidth=1.6, label=label)
    support = [part[:, 0].tolist() for part in shown.episode.support]
    label = f"{len(support[0])} support points"
    axes.plot(*support, "o", color=INK, markersize=6, markeredgecolor=COLOURS["paper"], label=label)
    axes.set_xlabel("x")
    axes.set_ylabel("y")


def fitted_steps(last: int) -> list[int]:
    """Return which inner steps of 0 … `last` are drawn: 0, 1, 5 and 10 as far as they go, and always the last."""
    return sorted({step for step in (0, 1, 5, 10) if step < last} | {last})
