"""Pictures of a run: how it learned, and how it adapts. PNG files, by matplotlib, without a display.

Figures are made as objects, never through pyplot, so that nothing is shared with the caller's own plots.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metatrain.evaluation.predictions import TaskPredictions
from metatrain.tracking.jsonl import read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, VALIDATION, TARGET = "#8a94a6", "#1f5fbf", "#d9822b"
INK, GRID = "#2b2f36", "#e6e8ec"
FITTED: tuple[Any, ...] = ("#123a7a", "solid")
FITS: tuple[Any, ...] = (
    ("#8a94a6", (0, (1, 1.5))),
    ("#5d8fd6", (0, (4, 1.5, 1, 1.5))),
    ("#1f5fbf", (0, (6, 2))),
    ("#1f5fbf", (0, (8, 2, 1, 2, 1, 2))),
)
"""Colour and dash of the fit after the last inner step, and of those before it: grey to dark, as it learns."""
RAW_POINTS = 2000
"""No picture shows more: a longer curve is averaged in blocks before it is drawn."""


class Series(NamedTuple):
    """The points of one metric, in the order of steps; values that were not finite are nan."""

    steps: list[int]
    values: list[float]


class Panel(NamedTuple):
    """One set of axes: what is drawn, what it is called, and what to multiply values by."""

    label: str
    train: str
    validation: str
    scale: float
    ci95: str | None


def curves(metrics: Path, out: Path) -> None:
    """Train and validation loss and score against the outer step, from a metrics.jsonl, into the PNG `out`.

    Train is smoothed, with the raw values behind; validation carries its 95 % interval. A panel without points is
    left out, and an empty file gives a picture that says so. ValueError: see `recorders.read_lines`.
    """
    series = read_series(metrics)
    panels = [panel for panel in _panels(series) if panel.train in series or panel.validation in series]
    figure = blank_figure(width=5.2 * max(1, len(panels)))
    if not panels:
        figure.text(0.5, 0.5, "nothing recorded yet", ha="center", va="center", color=TRAIN)
    for number, panel in enumerate(panels, start=1):
        axes = plain_axes(figure, number, len(panels), "outer step", panel.label)
        _draw_train(axes, series.get(panel.train), panel.scale)
        _draw_validation(axes, series, panel)
        if panel.scale == 1.0 and spans_decades(series.get(panel.train), series.get(panel.validation)):
            axes.set_yscale("log")
        _legend(axes)
    save(figure, out)


def adaptation(evaluation: Mapping[str, Any], out: Path) -> None:
    """The score after 0, 1, ... k inner steps with its 95 % interval, into the PNG `out`.

    `evaluation` has "score" ("accuracy" or "mse"), "split", "tasks" and "curve": {"steps", "mean", "ci95"}, three lists
    of one length. ValueError: they are not.
    """
    from matplotlib.ticker import MaxNLocator

    curve = evaluation["curve"]
    accuracy = evaluation["score"] == "accuracy"
    if not len(curve["steps"]) == len(curve["mean"]) == len(curve["ci95"]):
        raise ValueError("an adaptation curve needs as many means and intervals as steps: evaluate the run again")
    scale = 100.0 if accuracy else 1.0
    mean = [scale * value for value in curve["mean"]]
    margin = [scale * value for value in curve["ci95"]]
    figure = blank_figure(width=5.6)
    axes = plain_axes(figure, 1, 1, "inner steps", "accuracy (%)" if accuracy else "mean squared error")
    _band(axes, curve["steps"], mean, margin)
    axes.plot(curve["steps"], mean, color=VALIDATION, marker="o", markersize=5, linewidth=1.8, clip_on=False, zorder=3)
    label = f"{mean[-1]:.2f} ± {margin[-1]:.2f} %" if accuracy else f"{mean[-1]:.4g} ± {margin[-1]:.2g}"
    axes.set_title(f"{evaluation['split']}, {evaluation['tasks']} tasks: {label}", loc="left", fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, out)


def fit(shown: TaskPredictions, title: str, out: Path) -> None:
    """A function of one number as a learner fits it, into the PNG `out`: the target, the support points, and the fit
    after some of the inner steps (`fitted_steps`). Support and queries: x [n, 1], y [n, 1].
    """
    order = shown.episode.query.x[:, 0].argsort()
    x, target = (part[order, 0].tolist() for part in shown.episode.query)
    steps = fitted_steps(len(shown.predictions) - 1)
    errors = {step: float((shown.predictions[step] - shown.episode.query.y).square().mean()) for step in steps}
    figure = blank_figure(width=5.6, height=4.2)
    axes = plain_axes(figure, 1, 1, "x", "y")
    axes.plot(x, target, color=TARGET, linewidth=4, alpha=0.45, solid_capstyle="round", label="target")
    for step, (colour, dash) in zip(steps, (*FITS[: len(steps) - 1], FITTED), strict=True):
        label = f"{step} {'step' if step == 1 else 'steps'}, mse {errors[step]:.3g}"
        axes.plot(
            x, shown.predictions[step][order, 0].tolist(), color=colour, linestyle=dash, linewidth=1.6, label=label
        )
    support = [part[:, 0].tolist() for part in shown.episode.support]
    axes.plot(
        *support, "o", color=INK, markersize=6, markeredgecolor="white", label=f"{len(support[0])} support points"
    )
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    figure.legend(frameon=False, fontsize=9, labelcolor=INK, loc="outside lower center", ncols=2)
    after = f"mean squared error {errors[steps[-1]]:.3g} after {steps[-1]} inner steps, {errors[0]:.3g} before"
    save(figure, out, f"{title}: the target curve, {len(support[0])} support points and the fits; {after}")


def fitted_steps(last: int) -> list[int]:
    """Which inner steps of 0 … `last` are drawn: 0, 1, 5 and 10 as far as they go, and always the last."""
    return sorted({step for step in (0, 1, 5, 10) if step < last} | {last})


def read_series(metrics: Path) -> dict[str, Series]:
    """Every metric of a metrics.jsonl by its key."""
    series: dict[str, Series] = {}
    for line in read_lines(metrics):
        if "event" in line:
            continue
        for key in line.keys() - {"step", "time"}:
            points = series.setdefault(key, Series([], []))
            points.steps.append(line["step"])
            points.values.append(math.nan if line[key] is None else float(line[key]))
    return series


def smoothed(values: list[float], window: int) -> list[float]:
    """The mean of up to `window` values around each, fewer at the ends and where some are nan."""
    half = window // 2
    sums, counts = [0.0], [0]
    for value in values:
        finite = math.isfinite(value)
        sums.append(sums[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    means = []
    for centre in range(len(values)):
        low, high = max(0, centre - half), min(len(values), centre + half + 1)
        count = counts[high] - counts[low]
        means.append((sums[high] - sums[low]) / count if count else math.nan)
    return means


def thinned(series: Series, points: int) -> Series:
    """At most `points` points, each the mean of a block of equally many neighbours, at the step of the middle one."""
    block = math.ceil(len(series.steps) / points)
    if block <= 1:
        return series
    starts = range(0, len(series.steps), block)
    blocks = [series.values[start : start + block] for start in starts]
    middles = [series.steps[min(start + block // 2, len(series.steps) - 1)] for start in starts]
    return Series(middles, [sum(values) / len(values) for values in blocks])


def _panels(series: Mapping[str, Series]) -> list[Panel]:
    """Loss and accuracy for classification; for regression the loss is the score, and one panel says it."""
    if "train/mse" in series or "validation/mse" in series:
        return [Panel("mean squared error", "train/mse", "validation/mse", 1.0, "validation/ci95")]
    return [
        Panel("loss", "train/loss", "validation/loss", 1.0, None),
        Panel("accuracy (%)", "train/accuracy", "validation/accuracy", 100.0, "validation/ci95"),
    ]


def _draw_train(axes: "Axes", series: Series | None, scale: float) -> None:
    if series is None:
        return
    steps, values = thinned(series, RAW_POINTS)
    scaled = [scale * value for value in values]
    axes.plot(steps, scaled, color=TRAIN, alpha=0.3, linewidth=0.7)
    axes.plot(steps, smoothed(scaled, max(1, len(scaled) // 25)), color=TRAIN, linewidth=1.8, label="train")


def _draw_validation(axes: "Axes", series: Mapping[str, Series], panel: Panel) -> None:
    if panel.validation not in series:
        return
    steps, values = series[panel.validation]
    scaled = [panel.scale * value for value in values]
    marker = "o" if len(steps) <= 40 else None
    if panel.ci95 is not None and panel.ci95 in series:
        margin_at = dict(zip(*series[panel.ci95], strict=True))
        _band(axes, steps, scaled, [panel.scale * margin_at.get(step, math.nan) for step in steps])
    axes.plot(steps, scaled, color=VALIDATION, linewidth=1.8, marker=marker, markersize=3.5, label="validation")


def _band(axes: "Axes", steps: list[int], mean: list[float], margin: list[float]) -> None:
    low = [value - width for value, width in zip(mean, margin, strict=True)]
    high = [value + width for value, width in zip(mean, margin, strict=True)]
    axes.fill_between(steps, low, high, color=VALIDATION, alpha=0.18, linewidth=0, label="95 % interval")


def spans_decades(*drawn: Series | None) -> bool:
    """Whether the values are positive and the largest is more than 30 times the smallest."""
    values = [value for series in drawn if series for value in series.values if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def blank_figure(width: float, height: float = 3.6) -> "Figure":
    """White, so many inches wide and high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(figure: "Figure", number: int, of: int, x: str, y: str) -> "Axes":
    """The axes number 1 … `of` in a row, with a faint grid and nothing above or to the right."""
    axes = figure.add_subplot(1, of, number)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, length=0, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    return axes


def _legend(axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    drawn = dict(zip(labels, handles, strict=True))
    shown = [label for label in ("train", "validation", "95 % interval") if label in drawn]
    axes.legend([drawn[label] for label in shown], shown, frameon=False, fontsize=9, labelcolor=INK)


def save(figure: "Figure", out: Path, description: str = "") -> None:
    """The picture at `out`, under its name only when it is whole; `description` goes into its text."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    figure.savefig(temporary, format="png", metadata={"Description": description})
    temporary.replace(out)
