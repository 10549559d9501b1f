"""Figures of a search: the best so far, all trials, importance, responses, rungs, trade-offs, populations."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatrain.report.plots import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    ORANGE,
    Panel,
    draw_curve,
    draw_panels,
    draw_points,
    save_png,
    set_log,
    set_whole,
    shorten,
)
from metatrain.report.series import spans_decades
from metatrain.report.text import count
from tune.history.trials import Trial
from tune.report import text
from tune.report.analysis import Lead, ancestry, leads, ranked, rungs, weighed
from tune.report.collect import SearchRecord
from tune.report.importance import importances, level
from tune.space.distributions import Categorical, Distribution, Integer, Real
from tune.space.search_space import Parameter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MAX_RESPONSES = 8
"""No more parameters have a chart of their own: the most important."""
MAX_MEMBERS = 12
"""No more members of a population are drawn beside the best."""
MAX_LINES = 400
"""No more trials are drawn across all parameters: the best."""
MAX_COSTS = 3
"""No more costs are drawn in one picture."""
ABSENT = -0.16
"""Where a line meets the axis of a parameter that the trial does not have; the axis reaches from 0 to 1."""


def save_figures(record: SearchRecord, folder: Path) -> list[Path]:
    """Draw the figures of a search into `folder` as PNG files and return them. Those without content are left out."""
    pictures = {
        "parallel-coordinates.png": parallel_coordinates(record),
        "importance.png": importance(record),
        "anytime.png": best_so_far(record),
        "rungs.png": rung_counts(record),
        "pareto.png": trade_offs(record)[:MAX_COSTS],
    }
    for name, panels in pictures.items():
        if panels:
            save_png(draw_panels(panels), folder / name)
    return [folder / name for name, panels in pictures.items() if panels]


def measure(record: SearchRecord) -> str:
    """Return the label of the values: Validation accuracy (%)."""
    name, _, unit = text.measured(record.metric)
    return f"{name[0].upper()}{name[1:]}{f' ({unit})' if unit else ''}"


def _scale(record: SearchRecord, values: Sequence[float]) -> list[float]:
    scale = text.measured(record.metric)[1]
    return [scale * value for value in values]


def _unit(record: SearchRecord) -> str:
    return text.measured(record.metric)[2]


def _label_values(axes: "Axes", record: SearchRecord, values: Sequence[float]) -> None:
    """Label y by the metric, logarithmic where its values span decades."""
    axes.set_ylabel(measure(record))
    if not _unit(record) and spans_decades(list(values)):
        set_log(axes.yaxis, values)


def best_so_far(record: SearchRecord) -> list[Panel]:
    """Return the best value by steps computed, and by minutes of the search where its clock has all of them."""
    found, computed = leads(record)
    if not found:
        return []
    minutes = [lead.seconds / 60 for lead in found]
    sides = [("steps computed by all trials", [float(lead.steps) for lead in found], float(computed))]
    if all(map(math.isfinite, minutes)):
        sides.append(("minutes of the search", minutes, max(record.spent / 60, minutes[-1])))
    title = f"{measure(record)}, best so far"
    return [
        Panel(title, partial(_draw_best, record=record, found=found, label=label, at=at, end=end), _unit(record))
        for label, at, end in sides
    ]


def _draw_best(
    axes: "Axes", record: SearchRecord, found: Sequence[Lead], label: str, at: Sequence[float], end: float
) -> None:
    y = _scale(record, [lead.value for lead in found])
    axes.step([*at, end], [*y, y[-1]], where="post", color=BLUE, linewidth=1.8, label="best so far")
    draw_points(axes, at, y, "a trial takes the lead", 2)
    axes.set_xlabel(label)
    _label_values(axes, record, y)


def rung_counts(record: SearchRecord) -> list[Panel]:
    """Return how many trials came to each budget and went on, and how many steps were computed up to it."""
    found = rungs(record.history)
    if not found:
        return []
    budgets = [count(rung.budget) for rung in found]
    bars = {
        "trials": {"came to it": [rung.trials for rung in found], "went on": [rung.went_on for rung in found]},
        "steps computed up to there": {"": [rung.steps for rung in found]},
    }
    descriptions = [
        "; ".join(f"{text.trials(rung.trials)} at {text.steps(rung.budget)}" for rung in found),
        "; ".join(f"{text.steps(rung.steps)} computed up to {count(rung.budget)}" for rung in found),
    ]
    return [
        Panel(
            f"{label[0].upper()}{label[1:]}, by rung",
            partial(_draw_rungs, budgets=budgets, label=label, bars=heights),
            description=f"{description}.",
        )
        for (label, heights), description in zip(bars.items(), descriptions, strict=True)
    ]


def _draw_rungs(axes: "Axes", budgets: Sequence[str], label: str, bars: Mapping[str, Sequence[int]]) -> None:
    styles = ((BLUE, 0.6), (COLOURS["line"], 0.3))
    for (name, heights), (colour, width) in zip(bars.items(), styles, strict=False):
        axes.bar(range(len(budgets)), heights, color=colour, width=width, label=name)
    every = math.ceil(len(budgets) / 12)
    axes.set_xticks(range(0, len(budgets), every), budgets[::every])
    axes.set_xlabel("steps of a trial")
    axes.set_ylabel(label)


def importance(record: SearchRecord) -> list[Panel]:
    """Return a bar for each parameter, with a mark at what chance stays below in 95 of 100 cases."""
    found = importances(record.space, record.history)
    if found is None:
        return []

    def draw(axes: "Axes") -> None:
        rows = range(len(shown))
        axes.barh(rows, [100 * one.share for one in shown], color=[BLUE if one.clear else GREY for one in shown])
        chance = [min(100.0, 100 * one.chance) for one in shown]
        axes.plot(chance, rows, "|", color=ORANGE, markersize=14, markeredgewidth=2, label="what chance gives up to")
        axes.set_yticks(rows, [shorten(one.name, 32) for one in shown])
        axes.set_xlabel("share of the importance (%)")
        axes.set_xlim(left=0)

    shown = found.parameters[::-1]
    title = f"Importance, from {found.observations} values at {text.steps(found.budget)}"
    return [Panel(title, draw, size=(5.2, 1.4 + 0.34 * len(shown)), description=text.importance(found))]


def responses(record: SearchRecord) -> tuple[int, list[Panel]]:
    """Return a budget and the values that trials have there by each parameter, the most important parameter first."""
    budget, found = level(record.history), importances(record.space, record.history)
    order = {one.name: place for place, one in enumerate(found.parameters)} if found else {}
    panels = []
    for parameter in sorted(record.space.parameters, key=lambda one: order.get(one.name, math.inf)):
        seen = [
            (trial, value)
            for trial in record.history.trials
            if (value := trial.value_at(budget)) is not None
            and parameter.distribution.contains(trial.configuration.get(parameter.name))
        ]
        if len(seen) >= 3:
            draw = partial(_draw_response, record=record, parameter=parameter, seen=seen)
            panels.append(Panel(parameter.name, draw, _unit(record)))
    return budget, panels[:MAX_RESPONSES]


def _draw_response(
    axes: "Axes", record: SearchRecord, parameter: Parameter, seen: Sequence[tuple[Trial, float]]
) -> None:
    best, distribution = record.history.best(), parameter.distribution
    for label, look in (("trials", 1), ("the best", 2)):
        rows = [(trial.configuration[parameter.name], value) for trial, value in seen if (trial is best) == (look == 2)]
        if rows:
            x = [float(distribution.index(at) if isinstance(distribution, Categorical) else at) for at, _ in rows]
            draw_points(axes, x, _scale(record, [value for _, value in rows]), label, look)
    _fit_axis(axes.xaxis, distribution)
    axes.set_xlabel(shorten(parameter.name))
    _label_values(axes, record, _scale(record, [value for _, value in seen]))


def _fit_axis(axis: "Axis", distribution: Distribution) -> None:
    """Let an axis show a whole distribution, on its own scale."""
    if isinstance(distribution, Categorical):
        room = max(4, 44 // len(distribution.options))
        names = [shorten(text.setting(one), room) for one in distribution.options]
        axis.set_ticks(range(len(names)), names)
        axis.axes.set_xlim(-0.5, len(names) - 0.5)
    elif isinstance(distribution, (Real, Integer)):
        if distribution.log:
            set_log(axis, (distribution.low, distribution.high))
        elif isinstance(distribution, Integer):
            set_whole(axis)
        axis.axes.set_xlim(distribution.low, distribution.high)


def trade_offs(record: SearchRecord) -> list[Panel]:
    """Return the value by each cost, of the trials that are compared, with the Pareto front marked."""
    rows, objectives = weighed(record.history), record.history.objectives

    def draw(axes: "Axes", cost: int) -> None:
        for label, look, on_front in (("trials", 0, False), ("on the front", 1, True)):
            points = sorted((row.costs[cost], row.value) for row in rows if row.on_front is on_front)
            # Of two objectives the front is a line; of more it is a surface, of which the points are drawn.
            line = "-" if on_front and len(objectives) == 1 else "none"
            draw_points(axes, [x for x, _ in points], _scale(record, [y for _, y in points]), label, look, line)
        if spans_decades([row.costs[cost] for row in rows]):
            set_log(axes.xaxis, [row.costs[cost] for row in rows])
        axes.set_xlabel(shorten(text.COSTS.get(objectives[cost], objectives[cost])))
        axes.set_ylabel(measure(record))

    return (
        [Panel(measure(record), partial(draw, cost=i), _unit(record)) for i in range(len(objectives))] if rows else []
    )


def lineage(record: SearchRecord) -> list[Panel]:
    """Return, of a population, each setting that copies changed by steps, along the ancestry of those that are left."""
    trials = record.history.trials
    alive = [trial for trial in ranked(record.history) if trial.results and not trial.reason.startswith("copies")]
    panels = []
    for parameter in record.space.parameters:
        changed = any(
            trial.configuration.get(parameter.name) != trials[trial.parent].configuration.get(parameter.name)
            for trial in trials
            if trial.parent is not None
        )
        schedules = [
            _schedule(ancestry(record.history, one.number), parameter.name) for one in alive[: MAX_MEMBERS + 1]
        ]
        if changed and isinstance(parameter.distribution, (Real, Integer)) and any(x for x, _ in schedules):
            best = f"the best, trial {alive[0].number}"
            draw = partial(_draw_lineage, parameter=parameter, schedules=schedules, best=best)
            panels.append(Panel(parameter.name, draw))
    return panels


def _draw_lineage(
    axes: "Axes", parameter: Parameter, schedules: Sequence[tuple[list[float], list[float]]], best: str
) -> None:
    for rank, (x, y) in reversed(list(enumerate(schedules))):
        line = draw_curve(axes, x, y, best if rank == 0 else "others", 1 if rank == 0 else 0)
        line.set(marker="", alpha=1.0 if rank == 0 else 0.4)
    if getattr(parameter.distribution, "log", False):
        set_log(axes.yaxis, [value for _, y in schedules for value in y])
    axes.set_xlabel("steps")
    axes.set_ylabel(shorten(parameter.name))


def _schedule(chain: Sequence[Trial], name: str) -> tuple[list[float], list[float]]:
    """Return steps and a setting at them, which is level between one copy and the next."""
    x: list[float] = []
    y: list[float] = []
    ends = [*(trial.start for trial in chain[1:]), chain[-1].budget]
    for trial, end in zip(chain, ends, strict=True):
        value = trial.configuration.get(name)
        if isinstance(value, (int, float)):
            x += [trial.start, end]
            y += [value, value]
    return x, y


def parallel_coordinates(record: SearchRecord) -> list[Panel]:
    """Return a line for each trial with a result across all parameters, each on its own scale, to the value at the
    right, the better the higher. The best is drawn last, so that it lies on top.
    """
    trials = [trial for trial in ranked(record.history) if trial.results][:MAX_LINES]
    if not trials:
        return []
    many = 1 + len(record.space.parameters)
    title = f"Parallel coordinates of {text.trials(len(trials))}"
    description = f"{title} across {many - 1} parameters; the best is trial {trials[0].number}."
    draw = partial(_draw_parallel, record=record, trials=trials)
    return [Panel(title, draw, size=(max(6.0, 1.5 * many), 4.4), description=description)]


def _draw_parallel(axes: "Axes", record: SearchRecord, trials: Sequence[Trial]) -> None:
    parameters, values = record.space.parameters, _scale(record, [trial.results[-1][1] for trial in trials])
    value_range = _value_range(record, values)
    upwards = record.history.mode == "max"
    best: dict[str, Any] = {"color": ORANGE, "linewidth": 3.0}
    for rank, (trial, value) in reversed(list(enumerate(zip(trials, values, strict=True)))):
        place = value_range.quantile(value)
        places = [*(_place(one, trial) for one in parameters), place if upwards else 1 - place]
        strength = 1 - rank / len(trials)
        look: dict[str, Any] = {"color": BLUE, "alpha": 0.15 + 0.7 * strength**2, "linewidth": 0.8 + 0.8 * strength}
        axes.plot(places, **(look if rank else best))
    for at, parameter in enumerate(parameters):
        _mark_upright(axes, at, _axis_marks(parameter.distribution))
        if any(line.get_ydata()[at] == ABSENT for line in axes.lines[: len(trials)]):  # type: ignore[index]
            _mark_upright(axes, at, [(ABSENT, "absent")])
    marks = _axis_marks(value_range)
    _mark_upright(axes, len(parameters), marks if upwards else [(1 - place, label) for place, label in marks])
    sections = [one.name.rpartition(".")[::2] for one in parameters]
    titles = ["\n".join(shorten(part, 16) for part in parts) for parts in (*sections, measure(record).split(" ", 1))]
    axes.set_xticks(range(len(titles)), titles)
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlim(-0.15, len(titles) - 0.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _place(parameter: Parameter, trial: Trial) -> float:
    value = trial.configuration.get(parameter.name)
    if parameter.name not in trial.configuration or not parameter.distribution.contains(value):
        return ABSENT
    return min(max(parameter.distribution.quantile(value), 0.0), 1.0)


def _value_range(record: SearchRecord, values: Sequence[float]) -> Real:
    """Return the range of the values, as the distribution of an axis."""
    low, high = min(values), max(values)
    if low == high:
        return Real(low - 0.5, high + 0.5)
    return Real(low, high, log=not _unit(record) and spans_decades(list(values)))


def _axis_marks(distribution: Distribution) -> list[tuple[float, str]]:
    """Return the places along an axis, 0 to 1, that are marked: each option, or both ends and round numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if isinstance(distribution, Categorical):
        names = [shorten(text.setting(one), 16) for one in distribution.options]
        return [((i + 0.5) / len(names), name) for i, name in enumerate(names)]
    low, high = getattr(distribution, "low", 0), getattr(distribution, "high", 1)
    whole = not isinstance(distribution, Real)
    locator = LogLocator(numticks=7) if getattr(distribution, "log", False) else MaxNLocator(nbins=5, integer=whole)
    ticks = [round(value) if whole else float(value) for value in locator.tick_values(low, high)]
    inner = [(distribution.quantile(value), f"{value:g}") for value in ticks if low < value < high]
    ends = [(distribution.quantile(value), f"{value:.3g}") for value in (low, high)]
    return [*ends, *(mark for mark in inner if all(abs(mark[0] - place) > 0.07 for place, _ in ends))]


def _mark_upright(axes: "Axes", at: int, marks: Sequence[tuple[float, str]]) -> None:
    """Draw one of the parallel axes, with labels that stand out from the lines behind."""
    box = {"boxstyle": "square,pad=0.1", "facecolor": COLOURS["paper"], "edgecolor": "none", "alpha": 0.75}
    axes.plot([at, at], [0, 1], color=INK, linewidth=0.8, zorder=4)
    for place, label in marks:
        axes.text(at + 0.03, place, label, fontsize=8, color=INK, va="center", bbox=box, zorder=5)
