"""Draw all trials of a search as lines across its parameters, to the value that each of them reached."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from metatrain.report.plots import BLUE, COLOURS, INK, ORANGE, Panel, shorten
from metatrain.report.series import spans_decades
from tune.history.trials import Trial
from tune.report import text
from tune.report.analysis import rank_trials
from tune.report.collect import SearchRecord
from tune.space.distributions import Categorical, Distribution, Real
from tune.space.search_space import Parameter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LINES = 400
"""No more trials are drawn: the best."""
ABSENT = -0.16
"""Where a line meets the axis of a parameter that the trial does not have; the axis reaches from 0 to 1."""


def parallel_coordinates(record: SearchRecord) -> list[Panel]:
    """Return a line for each trial with a result across all parameters, each on its own scale, to the value at the
    right, the better the higher. The best is drawn last, so that it lies on top.
    """
    trials = [trial for trial in rank_trials(record.history) if trial.results][:MAX_LINES]
    if not trials:
        return []
    many = 1 + len(record.space.parameters)
    title = f"Parallel coordinates of {text.trials(len(trials))}"
    description = f"{title} across {many - 1} parameters; the best is trial {trials[0].number}."
    draw = partial(_draw_parallel, record=record, trials=trials)
    return [Panel(title, draw, size=(max(6.0, 1.5 * many), 4.4), description=description)]


def _draw_parallel(axes: "Axes", record: SearchRecord, trials: Sequence[Trial]) -> None:
    parameters, values = record.space.parameters, text.scale_values(record, [trial.results[-1][1] for trial in trials])
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
    titles = [
        "\n".join(shorten(part, 16) for part in parts) for parts in (*sections, text.metric_label(record).split(" ", 1))
    ]
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
    return Real(low, high, log=not text.unit(record) and spans_decades(list(values)))


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
