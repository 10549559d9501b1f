"""Which charts a page has: training and validation, and the score after each inner step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metatrain.report.charts import Chart, Curve, chart
from metatrain.report.collect import Story
from metatrain.report.plots import Series, smoothed, spans_decades, thinned

POINTS = 1000
"""No curve of a page has more: there are no more pixels to show them."""


class _Metric(NamedTuple):
    """A metric's key, what it is called, what to multiply its values by, and its unit."""

    key: str
    label: str
    scale: float
    unit: str


_LOSS = _Metric("loss", "Loss", 1.0, "")
SCORES = {
    "accuracy": _Metric("accuracy", "Accuracy (%)", 100.0, "%"),
    "mse": _Metric("mse", "Mean squared error", 1.0, ""),
}


def training(stories: Sequence[Story], labels: Sequence[str]) -> list[Chart]:
    """Loss and score by outer step: of one run, training and validation together; of several, each beside the rest.

    Training is smoothed; validation carries the 95 % interval of its score.
    """
    if len(stories) == 1:
        charts = [_of_one(stories[0], metric) for metric in (_LOSS, *SCORES.values())]
    else:
        charts = [
            _of_several(stories, labels, metric, split)
            for metric in (_LOSS, *SCORES.values())
            for split in ("train", "validation")
        ]
    return [drawn for drawn in charts if drawn is not None]


def _of_one(story: Story, metric: _Metric) -> Chart | None:
    if not _has(story, metric):
        return None
    raw, validation = (story.series.get(f"{split}/{metric.key}") for split in ("train", "validation"))
    curves = []
    if raw is not None:
        few = thinned(raw, POINTS)
        curves += [_curve("", 0, few, metric)._replace(faint=True), _curve("training", 0, _smooth(raw), metric)]
    if validation is not None:
        curves.append(_validation("validation", 1, story, metric))
    return chart(metric.label, "outer step", curves, metric.unit, _log(metric, [raw, validation]))


def _of_several(stories: Sequence[Story], labels: Sequence[str], metric: _Metric, split: str) -> Chart | None:
    curves, drawn = [], []
    for number, (story, label) in enumerate(zip(stories, labels, strict=True), start=1):
        series = story.series.get(f"{split}/{metric.key}")
        if series is None or not _has(story, metric):
            continue
        drawn.append(series)
        if split == "train":
            curves.append(_curve(label, number, _smooth(series), metric))
        else:
            curves.append(_validation(label, number, story, metric))
    title = f"{'Training' if split == 'train' else 'Validation'}: {metric.label[0].lower()}{metric.label[1:]}"
    return chart(title, "outer step", curves, metric.unit, _log(metric, drawn)) if curves else None


def _has(story: Story, metric: _Metric) -> bool:
    """Whether the run recorded it; for regression the loss is the score, and one chart says it."""
    keys = story.series.keys()
    if metric is _LOSS and keys & {"train/mse", "validation/mse"}:
        return False
    return bool(keys & {f"train/{metric.key}", f"validation/{metric.key}"})


def _smooth(series: Series) -> Series:
    return thinned(Series(series.steps, smoothed(series.values, max(1, len(series.values) // 25))), POINTS)


def _curve(label: str, look: int, series: Series, metric: _Metric) -> Curve:
    return Curve(label, look, series.steps, [metric.scale * value for value in series.values])


def _validation(label: str, look: int, story: Story, metric: _Metric) -> Curve:
    """The validation curve, with the interval of the score where the metric is the score."""
    series = story.series[f"validation/{metric.key}"]
    curve = _curve(label, look, thinned(series, POINTS), metric)
    ci95 = story.series.get("validation/ci95")
    if metric is _LOSS or ci95 is None:
        return curve
    at = dict(zip(*ci95, strict=True))
    margins = thinned(Series(series.steps, [at.get(step, math.nan) for step in series.steps]), POINTS)
    return curve._replace(margin=[metric.scale * margin for margin in margins.values])


def _log(metric: _Metric, drawn: Sequence[Series | None]) -> bool:
    return metric.scale == 1.0 and spans_decades(*drawn)


def adaptation(stories: Sequence[Story], labels: Sequence[str]) -> list[Chart]:
    """The score after each inner step, a chart for each evaluation in which a learner has inner steps: of one run every
    learner, of several the trained learner of each. Who has none is a level line.
    """
    names = dict.fromkeys(tested.name for story in stories for tested in story.evaluations)
    charts = [_adaptation(name, stories, labels) for name in names]
    return [drawn for drawn in charts if drawn is not None]


def _adaptation(name: str, stories: Sequence[Story], labels: Sequence[str]) -> Chart | None:
    found: list[tuple[str, int, dict[str, Any]]] = []
    for number, (story, label) in enumerate(zip(stories, labels, strict=True), start=1):
        rows = next((tested.rows for tested in story.evaluations if tested.name == name), [])
        if len(stories) == 1:
            found += [(row["learner"].replace("_", " "), look, row) for look, row in enumerate(rows, start=1)]
        else:
            found += [(label, number, row) for row in rows[:1]]
    found = [(label, look, row) for label, look, row in found if row.get("curve", {}).get("steps")]
    last = max((row["curve"]["steps"][-1] for *_, row in found), default=0)
    if last == 0:
        return None
    metric = SCORES[found[0][2]["score"]]
    curves = [_adapted(label, look, row, metric, last) for label, look, row in found if row["score"] == metric.key]
    return chart(f"{metric.label}, {name}", "inner steps", curves, metric.unit)


def _adapted(label: str, look: int, row: Mapping[str, Any], metric: _Metric, last: int) -> Curve:
    steps, mean, ci95 = (row["curve"][key] for key in ("steps", "mean", "ci95"))
    if len(steps) == 1:
        label, steps, mean, ci95 = f"{label}, no inner steps", [0, last], 2 * mean, 2 * ci95
    scaled, margin = ([metric.scale * value for value in values] for values in (mean, ci95))
    return Curve(label, look, steps, scaled, margin)
