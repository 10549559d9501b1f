"""Line charts as geometry: what a template needs to write them as SVG, which takes its colours from the page.

Coordinates are of the SVG's own box, WIDTH × HEIGHT. Curves differ by colour, dash and marker.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 10, 40
DOTS = 40
"""A curve with no more points than this has a dot on each, which says its value when it is pointed at."""


class Curve(NamedTuple):
    """What is drawn. `look` 0 is grey; others have a colour, a dash and a marker of their own."""

    label: str
    look: int
    x: Sequence[float]
    y: Sequence[float]
    margin: Sequence[float] = ()
    """Half the width of the 95 % interval around each y; empty where there is none."""
    faint: bool = False
    """Behind the others, without a dot or a place in the legend."""
    loose: bool = False
    """Points without a line from one to the next."""
    said: Sequence[str] = ()
    """What each dot says; empty for its label and its place."""


class Axis(NamedTuple):
    """What lies along x, when it is not steps."""

    label: str
    log: bool = False
    whole: bool = False
    """Whether it is marked at whole numbers only."""
    options: Sequence[str] = ()
    """The names of 0, 1, …, where x is one of them."""
    span: tuple[float, float] | None = None
    """Where it begins and ends; None for where the values do."""


class Tick(NamedTuple):
    """A place on an axis, and what is written there."""

    at: float
    label: str


class Dot(NamedTuple):
    """A marker, as the SVG path around its place, and what it says."""

    path: str
    text: str


class Drawn(NamedTuple):
    """A curve as SVG paths."""

    label: str
    colour: int
    dash: int
    faint: bool
    line: str
    band: str
    dots: list[Dot]
    loose: bool
    sample: str
    """The marker in the middle of a legend's 36 × 12."""


class Chart(NamedTuple):
    """A whole chart; `description` says in words what it shows."""

    title: str
    description: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curves: list[Drawn]
    has_bands: bool


class Scale(NamedTuple):
    """From values to coordinates, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def chart(title: str, along: str | Axis, curves: Sequence[Curve], unit: str = "", log: bool = False) -> Chart:
    """`curves` over a common x, `along` an axis, or steps by their name. `unit` follows a value in words ("%"); `log`:
    a logarithmic y, all y above zero.
    """
    axis = along if isinstance(along, Axis) else Axis(along, whole=True)
    x_label = axis.label
    x = Scale(*_x_span(axis, curves), LEFT, WIDTH - RIGHT, axis.log)
    y = Scale(*_y_span(curves, log), HEIGHT - BOTTOM, TOP, log)
    x_ticks = [Tick(round(x(value), 1), label) for value, label in _marked(axis, x)]
    values = log_ticks(y.low, y.high) if log else linear_ticks(y.low, y.high, 6)
    return Chart(
        title=title,
        description=_in_words(title, x_label, curves, unit),
        x_label=x_label,
        x_ticks=x_ticks,
        y_ticks=[Tick(round(y(value), 1), short(value)) for value in values],
        curves=[_drawn(curve, x, y, x_label, unit) for curve in curves],
        has_bands=any(len(curve.margin) > 0 for curve in curves),
    )


def _drawn(curve: Curve, x: Scale, y: Scale, x_label: str, unit: str) -> Drawn:
    points = [
        (x(at), y(value)) if _drawable(at, x) and _drawable(value, y) else None
        for at, value in zip(curve.x, curve.y, strict=True)
    ]
    shape = curve.look % 4
    dots = []
    if not curve.faint and (curve.loose or len(points) <= DOTS):
        margins = curve.margin or [math.nan] * len(points)
        texts = curve.said or [
            f"{curve.label}, {x_label} {short(at)}: {with_margin(value, margin, unit)}"
            for at, value, margin in zip(curve.x, curve.y, margins, strict=True)
        ]
        dots = [Dot(_marker(shape, *place), text) for place, text in zip(points, texts, strict=True) if place]
    return Drawn(
        label=curve.label,
        colour=0 if curve.look == 0 else 1 + (curve.look - 1) % 7,
        dash=0 if curve.look == 0 else (curve.look - 1) % 6,
        faint=curve.faint,
        line="" if curve.loose else _path(points),
        band=_band(curve, x, y),
        dots=dots,
        loose=curve.loose,
        sample=_marker(shape, 18, 6) if dots else "",
    )


def with_margin(value: float, margin: float, unit: str) -> str:
    """93.40 ± 0.51 %, or 0.259 ± 0.051, two figures of the margin, on one line; without a margin where it is nan."""
    if math.isnan(margin):
        said = f"{value:.2f} {unit}" if unit else f"{value:.4g}"
    elif unit:
        said = f"{value:.2f} ± {margin:.2f} {unit}"
    else:
        decimals = min(9, max(0, 1 - math.floor(math.log10(margin)))) if 0 < margin < math.inf else 4
        said = f"{value:.{decimals}f} ± {margin:.{decimals}f}"
    return said.replace(" ", "\N{NO-BREAK SPACE}")


def _drawable(value: float, scale: Scale) -> bool:
    return math.isfinite(value) and (value > 0 or not scale.log)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Straight lines, broken where a point is missing."""
    parts, pen_up = [], True
    for point in points:
        if point is not None:
            parts.append(f"{'M' if pen_up else 'L'}{point[0]:.1f},{point[1]:.1f}")
        pen_up = point is None
    return "".join(parts)


def _band(curve: Curve, x: Scale, y: Scale) -> str:
    if not curve.margin:
        return ""
    inside = [
        (x(at), y(max(value - margin, y.low)), y(min(value + margin, y.high)))
        for at, value, margin in zip(curve.x, curve.y, curve.margin, strict=True)
        if _drawable(value, y) and math.isfinite(margin)
    ]
    there = [f"{at:.1f},{low:.1f}" for at, low, _ in inside]
    back = [f"{at:.1f},{high:.1f}" for at, _, high in reversed(inside)]
    return f"M{'L'.join(there + back)}Z" if len(inside) > 1 else ""


def _marker(shape: int, x: float, y: float) -> str:
    """Around (x, y): a diamond, a disc, a square or a triangle."""
    match shape:
        case 1:
            return f"M{x - 3:.1f},{y:.1f}a3,3 0 1,0 6,0a3,3 0 1,0 -6,0Z"
        case 2:
            return f"M{x - 2.7:.1f},{y - 2.7:.1f}h5.4v5.4h-5.4Z"
        case 3:
            return f"M{x:.1f},{y - 3.6:.1f}l3.6,6.4h-7.2Z"
        case _:
            return f"M{x:.1f},{y - 3.8:.1f}l3.8,3.8l-3.8,3.8l-3.8,-3.8Z"


def _x_span(axis: Axis, curves: Sequence[Curve]) -> tuple[float, float]:
    if axis.options:
        return -0.5, len(axis.options) - 0.5
    values = [value for curve in curves for value in curve.x if math.isfinite(value) and (value > 0 or not axis.log)]
    if axis.log and axis.span is None:
        low, high = min(values, default=1.0), max(values, default=10.0)
        return (low, high) if high > low else (low / 2, high * 2)
    return axis.span or _span(values)


def _marked(axis: Axis, x: Scale) -> list[tuple[float, str]]:
    """Where x is marked, and with what."""
    if axis.options:
        return list(enumerate(axis.options))
    values = few_ticks(x.low, x.high, axis.log)
    return _whole(values) if axis.whole else [(value, short(value)) for value in values]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest, apart by something even where all are equal or there is none."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _y_span(curves: Sequence[Curve], log: bool) -> tuple[float, float]:
    """What holds every value and interval, and a little more."""
    values = [value for curve in curves for value in curve.y if math.isfinite(value) and (value > 0 or not log)]
    if log:
        low, high = _span(values)
        return low / 1.15, high * 1.15
    for curve in curves:
        for value, margin in zip(curve.y, curve.margin, strict=False):
            if math.isfinite(value + margin):
                values += [value - margin, value + margin]
    low, high = _span(values)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and twice and five times those where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 1000 else (1, 2, 5)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def few_ticks(low: float, high: float, log: bool, most: int = 7) -> list[float]:
    """Such of them as have room beside one another: of many powers of ten every second, third, …"""
    if not log:
        return linear_ticks(low, high, most - 2)
    found = log_ticks(low, high)
    powers = [value for value in found if abs(math.log10(value) - round(math.log10(value))) < 1e-9]
    chosen = powers if len(found) > most and len(powers) > 1 else found
    return chosen[:: math.ceil(len(chosen) / most) or 1]


def _whole(values: Sequence[float]) -> list[tuple[float, str]]:
    """Steps are whole numbers."""
    return [(value, short(value)) for value in values if abs(value - round(value)) < 1e-9]


def short(value: float) -> str:
    """As few figures as tell it apart from its neighbours: 0.002, 35, 12k."""
    if abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{round(value, 10):g}".replace("-", "−")


def _in_words(title: str, x_label: str, curves: Sequence[Curve], unit: str) -> str:
    said = []
    for curve in curves:
        ends = [(at, value) for at, value in zip(curve.x, curve.y, strict=True) if math.isfinite(value)]
        if ends and not curve.faint:
            (first, before), (last, after) = ends[0], ends[-1]
            values = (with_margin(value, math.nan, unit) for value in (before, after))
            many = f"{len(ends)} points, the first and the last" if curve.loose else "from"
            said.append(f"{curve.label}: {many} {' to '.join(values)}, {x_label} {first:g} to {last:g}")
    return f"{title} by {x_label}. " + "; ".join(said) + "."
