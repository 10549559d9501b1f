"""Pictures of a search for MLflow: PNG files, by matplotlib, without a display, in the style of `report.plots`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from metatrain.report.plots import INK, TARGET, TRAIN, VALIDATION, Series, blank_figure, plain_axes, save, spans_decades
from metatrain.report.text import count
from tune.report import text
from tune.report.analysis import leads, rungs, weighed
from tune.report.collect import SearchStory
from tune.report.importance import importances
from tune.report.parallel_coordinates import ABSENT, SHADES, parallel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUES = ("#ccd2da", "#a9bcd8", "#7fa3d6", "#4d80c9", "#1b4f9e")
"""From the last fifth of the trials to the best."""
FRONTS = 3
"""No more costs have axes of their own."""


def plots(story: SearchStory, folder: Path) -> list[Path]:
    """Draw into `folder` what can be drawn; returns the files. What has nothing to show is left out."""
    found = []
    for name, draw in PLOTS.items():
        path = folder / name
        if draw(story, path):
            found.append(path)
    return found


def _parallel(story: SearchStory, out: Path) -> bool:
    """A line for each trial with a result across all parameters, the best in a colour of its own."""
    picture = parallel(story)
    if picture is None:
        return False
    many = len(picture.axes)
    figure = blank_figure(width=max(6.0, 1.5 * many), height=4.4)
    axes = plain_axes(figure, 1, 1, "", "")
    axes.grid(visible=False)
    axes.set_yticks([])
    for line in picture.lines:
        colour = TARGET if line.best else BLUES[line.shade - 1]
        width = 3.0 if line.best else 0.8 + 0.25 * line.shade * (line.shade > SHADES - 2)
        axes.plot(range(many), line.places, color=colour, linewidth=width, zorder=3 if line.best else 2)
    for at, axis in enumerate(picture.axes):
        axes.plot([at, at], [0, 1], color=INK, linewidth=0.8, zorder=4)
        labels = [(tick.at, tick.label) for tick in axis.ticks] + ([(ABSENT, "absent")] if axis.absent else [])
        for place, label in labels:
            _label(axes, at + 0.03, place, label)
    titles = ["\n".join(_plain(part) for part in axis.title).strip() for axis in picture.axes]
    axes.set_xticks(range(many), titles)
    axes.xaxis.tick_top()
    axes.set_xlim(-0.15, many - 0.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    said = f"Parallel coordinates of {text.trials(len(picture.lines))}, {picture.lines[-1].text} being the best"
    save(figure, out, said)
    return True


def _label(axes: "Axes", x: float, y: float, text: str) -> None:
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    axes.text(x, y, _plain(text), fontsize=8, color=INK, va="center", bbox=box, zorder=5)


def _plain(text: str) -> str:
    """Without what matplotlib would take for mathematics."""
    return text.replace("$", r"\$")


def _importance(story: SearchStory, out: Path) -> bool:
    """A bar for each parameter, and a mark at what chance stays below in 95 of 100 cases."""
    found = importances(story.space, story.history)
    if found is None:
        return False
    shown = found.parameters[::-1]
    figure = blank_figure(width=6.4, height=1.4 + 0.34 * len(shown))
    axes = plain_axes(figure, 1, 1, "share of the importance (%)", "")
    rows = range(len(shown))
    colours = [VALIDATION if one.clear else TRAIN for one in shown]
    axes.barh(rows, [100 * one.share for one in shown], color=colours, height=0.6)
    chance = [min(100.0, 100 * one.chance) for one in shown]
    axes.plot(chance, rows, "|", color=TARGET, markersize=14, markeredgewidth=2)
    axes.set_yticks(rows, [_plain(one.name) for one in shown])
    rests = f"{found.observations} values at {text.steps(found.budget)}; the mark: what chance gives up to"
    axes.set_title(rests, loc="left", fontsize=9, color=INK)
    axes.set_xlim(left=0)
    save(figure, out, text.importance(found))
    return True


def _anytime(story: SearchStory, out: Path) -> bool:
    """The best so far by steps computed, and by minutes where the clock tells of all."""
    found, computed = leads(story)
    if not found:
        return False
    minutes = [lead.seconds / 60 for lead in found]
    sides: list[tuple[str, list[float], float]] = [("steps computed", [lead.steps for lead in found], computed)]
    if all(map(math.isfinite, minutes)):
        sides.append(("minutes of the search", minutes, max(story.spent / 60, minutes[-1])))
    y = _scaled(story, [lead.value for lead in found])
    figure = blank_figure(width=5.2 * len(sides))
    for number, (label, x, end) in enumerate(sides, 1):
        axes = plain_axes(figure, number, len(sides), label, _measure(story))
        axes.step([*x, end], [*y, y[-1]], where="post", color=VALIDATION, linewidth=1.8)
        axes.plot(x, y, "o", color=VALIDATION, markersize=4)
        if _log(story, y):
            axes.set_yscale("log")
    save(figure, out, text.summary(story)[1])
    return True


def _rungs(story: SearchStory, out: Path) -> bool:
    """How many trials came to each budget, and how many steps were computed below it."""
    found = rungs(story.history)
    if not found:
        return False
    figure = blank_figure(width=9.6)
    names = [count(rung.budget) for rung in found]
    bars: list[tuple[str, list[int]]] = [("trials", [rung.trials for rung in found])]
    bars.append(("steps computed up to there", [rung.steps for rung in found]))
    for number, (label, heights) in enumerate(bars, 1):
        axes = plain_axes(figure, number, 2, "steps of a trial", label)
        axes.bar(range(len(found)), heights, color=VALIDATION, width=0.6)
        _marks(axes, names)
        if number == 1:
            went_on = [rung.went_on for rung in found]
            axes.bar(range(len(found)), went_on, color=BLUES[0], width=0.3, label="of them went on")
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save(figure, out, "; ".join(f"{rung.trials} trials at {text.steps(rung.budget)}" for rung in found))
    return True


def _marks(axes: "Axes", names: list[str]) -> None:
    """Not more than a dozen, so that they can be read."""
    every = max(1, math.ceil(len(names) / 12))
    axes.set_xticks(range(0, len(names), every), names[::every])


def _pareto(story: SearchStory, out: Path) -> bool:
    """The value by each cost, the front marked; without objectives there is none."""
    rows = weighed(story.history)
    objectives = story.history.objectives[:FRONTS]
    if not rows or not objectives:
        return False
    figure = blank_figure(width=5.2 * len(objectives))
    for i, name in enumerate(objectives):
        axes = plain_axes(figure, i + 1, len(objectives), text.COSTS.get(name, _plain(name)), _measure(story))
        front = sorted((row.costs[i], row.value) for row in rows if row.on_front)
        behind = [(row.costs[i], row.value) for row in rows if not row.on_front]
        axes.plot(*_columns(story, behind), "o", color=TRAIN, markersize=4, label="trials")
        line = "solid" if len(objectives) == 1 else "none"
        axes.plot(*_columns(story, front), "o", linestyle=line, color=VALIDATION, markersize=6, label="on the front")
        if spans_decades(Series([], [row.costs[i] for row in rows])):
            axes.set_xscale("log")
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save(figure, out, f"{sum(row.on_front for row in rows)} trials are on the front of {len(rows)}")
    return True


def _columns(story: SearchStory, points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], _scaled(story, [y for _, y in points])


def _scaled(story: SearchStory, values: list[float]) -> list[float]:
    scale = text.measured(story.metric)[1]
    return [scale * value for value in values]


def _measure(story: SearchStory) -> str:
    name, _, unit = text.measured(story.metric)
    return _plain(f"{name} ({unit})" if unit else name)


def _log(story: SearchStory, values: list[float]) -> bool:
    return not text.measured(story.metric)[2] and spans_decades(Series([], values))


PLOTS: dict[str, Callable[[SearchStory, Path], bool]] = {
    "parallel-coordinates.png": _parallel,
    "importance.png": _importance,
    "anytime.png": _anytime,
    "rungs.png": _rungs,
    "pareto.png": _pareto,
}
"""Each by its file's name. A function draws, or says that there is nothing to draw."""
