"""Draw the figures of a search: the best so far, importance, responses, rungs, trade-offs, populations."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from metatrain.report.plots import (
    BLUE,
    COLOURS,
    GREY,
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
from tune.report.analysis import Improvement, ancestry, compare_costs, list_improvements, rank_trials, summarize_rungs
from tune.report.collect import SearchRecord
from tune.report.importance import importances, level
from tune.report.parallel_coordinates import parallel_coordinates
from tune.space.distributions import Categorical, Distribution, Integer, Real
from tune.space.search_space import Parameter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MAX_RESPONSES = 8
"""No more parameters have a chart of their own: the most important."""
MAX_MEMBERS = 12
"""No more members of a population are drawn beside the best."""
MAX_COSTS = 3
"""No more costs are drawn in one picture."""


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


def _label_values(axes: "Axes", record: SearchRecord, values: Sequence[float]) -> None:
    """Label y by the metric, logarithmic where its values span decades."""
    axes.set_ylabel(text.metric_label(record))
    if not text.unit(record) and spans_decades(list(values)):
        set_log(axes.yaxis, values)


def best_so_far(record: SearchRecord) -> list[Panel]:
    """Return the best value by steps computed, and by minutes of the search where its clock has all of them."""
    found, computed = list_improvements(record)
    if not found:
        return []
    minutes = [lead.seconds / 60 for lead in found]
    sides = [("steps computed by all trials", [float(lead.steps) for lead in found], float(computed))]
    if all(map(math.isfinite, minutes)):
        sides.append(("minutes of the search", minutes, max(record.spent / 60, minutes[-1])))
    title = f"{text.metric_label(record)}, best so far"
    return [
        Panel(title, partial(_draw_best, record=record, found=found, label=label, at=at, end=end), text.unit(record))
        for label, at, end in sides
    ]


def _draw_best(
    axes: "Axes", record: SearchRecord, found: Sequence[Improvement], label: str, at: Sequence[float], end: float
) -> None:
    y = text.scale_values(record, [lead.value for lead in found])
    axes.step([*at, end], [*y, y[-1]], where="post", color=BLUE, linewidth=1.8, label="best so far")
    draw_points(axes, at, y, "new best value", 2)
    axes.set_xlabel(label)
    _label_values(axes, record, y)


def rung_counts(record: SearchRecord) -> list[Panel]:
    """Return how many trials came to each budget and went on, and how many steps were computed up to it."""
    found = summarize_rungs(record.history)
    if not found:
        return []
    trials = {"reached it": [rung.trials for rung in found], "continued": [rung.went_on for rung in found]}
    reached = "; ".join(f"{text.trials(rung.trials)} at {text.steps(rung.budget)}" for rung in found)
    computed = "; ".join(f"{text.steps(rung.steps)} computed up to {count(rung.budget)}" for rung in found)
    draw = partial(_draw_rungs, budgets=[count(rung.budget) for rung in found])
    steps = partial(draw, label="steps computed since the rung below", bars={"": [rung.steps for rung in found]})
    return [
        Panel("Trials, by rung", partial(draw, label="trials", bars=trials), description=f"{reached}."),
        Panel("Steps computed since the rung below, by rung", steps, description=f"{computed}."),
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
            panels.append(Panel(parameter.name, draw, text.unit(record)))
    return budget, panels[:MAX_RESPONSES]


def _draw_response(
    axes: "Axes", record: SearchRecord, parameter: Parameter, seen: Sequence[tuple[Trial, float]]
) -> None:
    best, distribution = record.history.best(), parameter.distribution
    for label, look in (("trials", 1), ("the best", 2)):
        rows = [(trial.configuration[parameter.name], value) for trial, value in seen if (trial is best) == (look == 2)]
        if rows:
            x = [float(distribution.index(at) if isinstance(distribution, Categorical) else at) for at, _ in rows]
            draw_points(axes, x, text.scale_values(record, [value for _, value in rows]), label, look)
    _fit_axis(axes.xaxis, distribution)
    axes.set_xlabel(shorten(parameter.name))
    _label_values(axes, record, text.scale_values(record, [value for _, value in seen]))


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
    rows, objectives = compare_costs(record.history), record.history.objectives

    def draw(axes: "Axes", cost: int) -> None:
        for label, look, on_front in (("trials", 0, False), ("on the front", 1, True)):
            points = sorted((row.costs[cost], row.value) for row in rows if row.on_front is on_front)
            # Of two objectives the front is a line; of more it is a surface, of which the points are drawn.
            line = "-" if on_front and len(objectives) == 1 else "none"
            draw_points(
                axes, [x for x, _ in points], text.scale_values(record, [y for _, y in points]), label, look, line
            )
        if spans_decades([row.costs[cost] for row in rows]):
            set_log(axes.xaxis, [row.costs[cost] for row in rows])
        axes.set_xlabel(shorten(text.COSTS.get(objectives[cost], objectives[cost])))
        axes.set_ylabel(text.metric_label(record))

    return (
        [Panel(text.metric_label(record), partial(draw, cost=i), text.unit(record)) for i in range(len(objectives))]
        if rows
        else []
    )


def lineage(record: SearchRecord) -> list[Panel]:
    """Return, of a population, each setting that copies changed by steps, along the ancestry of those that are left."""
    trials = record.history.trials
    alive = [trial for trial in rank_trials(record.history) if trial.results and not trial.reason.startswith("copies")]
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
