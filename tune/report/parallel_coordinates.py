"""Parallel coordinates as geometry: an axis for each parameter on its own scale, a line for each trial.

Places along an axis are quantiles of the parameter's domain, 0 below and 1 above; the last axis is the value, the
better the higher. A parameter that a trial does not have is met below the axis, at ABSENT.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metatrain.report.charts import Scale, Tick, few_ticks, short
from tune.history.trials import Trial
from tune.report import text
from tune.report.analysis import ranked
from tune.report.collect import SearchStory
from tune.space.distributions import Categorical, Distribution, Real, Value

ABSENT = -0.16
MOST = 400
"""No picture has more lines: the best are drawn."""
SHADES = 5
"""Trials are shaded by fifths of their ranking: 5 the best, 1 the last."""


class Upright(NamedTuple):
    """One axis: its name by lines, where it is marked with what, and whether a trial drawn goes without it."""

    name: str
    title: tuple[str, ...]
    ticks: list[Tick]
    absent: bool


class Line(NamedTuple):
    """One trial: its place on each axis, its shade, and what it says."""

    places: list[float]
    shade: int
    best: bool
    text: str


class Parallel(NamedTuple):
    """The last axis is the value. left_out: how many trials have a result and no line."""

    axes: list[Upright]
    lines: list[Line]
    left_out: int


def parallel(story: SearchStory) -> Parallel | None:
    """The trials with a result, the best last, so that it lies on top. None: there are none."""
    everybody = [trial for trial in ranked(story.history) if trial.results]
    if not everybody:
        return None
    drawn = everybody[:MOST]
    scale = _value_scale(story, drawn)
    parameters = story.space.parameters
    lines = []
    for rank, trial in enumerate(drawn):
        places = [_place(one.distribution, trial.configuration, one.name) for one in parameters]
        budget, raw = trial.results[-1]
        lines.append(
            Line(
                [*places, scale(_scaled(story, raw))],
                shade=SHADES - rank * SHADES // len(drawn),
                best=rank == 0,
                text=f"trial {trial.number}: {text.value(story, raw)} after {text.steps(budget)}",
            )
        )
    axes = [
        Upright(one.name, _title(one.name), _ticks(one.distribution), any(line.places[i] == ABSENT for line in lines))
        for i, one in enumerate(parameters)
    ]
    name, _, unit = text.measured(story.metric)
    split, _, own = name.rpartition(" ")
    axes.append(Upright(name, (split, f"{own} ({unit})" if unit else own), _value_ticks(scale), absent=False))
    return Parallel(axes, lines[::-1], len(everybody) - len(drawn))


def _scaled(story: SearchStory, raw: float) -> float:
    return text.measured(story.metric)[1] * raw


def _place(distribution: Distribution, configuration: Mapping[str, Value], name: str) -> float:
    if name not in configuration or not distribution.contains(configuration[name]):
        return ABSENT
    return min(max(distribution.quantile(configuration[name]), 0.0), 1.0)


def _title(name: str) -> tuple[str, ...]:
    """model.encoder.width by sections, the last line being the parameter's own name."""
    sections, _, own = name.rpartition(".")
    return (_cut(sections), _cut(own)) if sections else ("", _cut(own))


def _cut(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:15]}…"


def _ticks(distribution: Distribution) -> list[Tick]:
    """Where an axis is marked: each option, or round numbers and both ends."""
    if isinstance(distribution, Categorical):
        return [
            Tick((i + 0.5) / len(distribution.options), _cut(text.setting(one)))
            for i, one in enumerate(distribution.options)
        ]
    low, high = getattr(distribution, "low", 0), getattr(distribution, "high", 1)
    inner = few_ticks(low, high, getattr(distribution, "log", False))
    if not isinstance(distribution, Real):
        inner = [round(value) for value in inner if abs(value - round(value)) < 1e-9]
    found = [Tick(distribution.quantile(value), short(value)) for value in inner if distribution.contains(value)]
    ends = [Tick(distribution.quantile(value), f"{value:.3g}") for value in (low, high)]
    apart = [end for end in ends if all(abs(end.at - tick.at) > 0.07 for tick in found)]
    return sorted([*found, *apart])


def _value_scale(story: SearchStory, drawn: Sequence[Trial]) -> Scale:
    """From a scaled value to a place, the better the higher."""
    values = [_scaled(story, trial.results[-1][1]) for trial in drawn]
    low, high = min(values), max(values)
    log = low > 0 and high > 30 * low and not text.measured(story.metric)[2]
    if low == high:
        low, high = low - 0.5, high + 0.5
    upwards = story.history.mode == "max"
    return Scale(low, high, 0.0 if upwards else 1.0, 1.0 if upwards else 0.0, log)


def _value_ticks(scale: Scale) -> list[Tick]:
    return [Tick(scale(value), short(value)) for value in few_ticks(scale.low, scale.high, scale.log)]
