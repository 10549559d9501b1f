"""Metrics over steps, read from metrics.jsonl, and how they are prepared for drawing: smoothed and thinned."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metatrain.tracking.jsonl import read_lines


class Series(NamedTuple):
    """The points of one metric, in the order of steps; values that were not finite are nan."""

    steps: list[int]
    values: list[float]

    def scale(self, factor: float) -> "Series":
        """Multiply the values, as 100 makes percentages of fractions."""
        return Series(self.steps, [factor * value for value in self.values])


def read_series(metrics: Path) -> dict[str, Series]:
    """Read every metric of a metrics.jsonl, by its key. ValueError: see `read_lines`."""
    return collect_series(read_lines(metrics))


def collect_series(lines: Iterable[Mapping[str, Any]], prefixes: tuple[str, ...] = ("",)) -> dict[str, Series]:
    """Return every metric in the lines of a metrics.jsonl whose key begins with one of `prefixes`, by its key."""
    series: dict[str, Series] = {}
    for line in lines:
        if "event" in line:
            continue
        for key in line.keys() - {"step", "time"}:
            if not key.startswith(prefixes):
                continue
            points = series.setdefault(key, Series([], []))
            points.steps.append(line["step"])
            points.values.append(math.nan if line[key] is None else float(line[key]))
    return series


def smooth(values: list[float], window: int) -> list[float]:
    """Return the mean of up to `window` values around each, of fewer at the ends and where some are nan."""
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


def thin(series: Series, points: int) -> Series:
    """Return at most `points` points, each the mean of a block of neighbours, at the step of the middle one."""
    block = math.ceil(len(series.steps) / points)
    if block <= 1:
        return series
    starts = range(0, len(series.steps), block)
    blocks = [series.values[start : start + block] for start in starts]
    middles = [series.steps[min(start + block // 2, len(series.steps) - 1)] for start in starts]
    return Series(middles, [sum(values) / len(values) for values in blocks])


def spans_decades(values: list[float]) -> bool:
    """Tell whether the finite values are positive and the largest is more than 30 times the smallest."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 30 * min(finite)
