"""Which charts the page of a search has: how the best came, what each parameter did, trade-offs, populations."""

import math
from collections.abc import Sequence

from metatrain.report.charts import Axis, Chart, Curve, chart
from metatrain.report.plots import Series, spans_decades
from tune.history.trials import Trial
from tune.report import text
from tune.report.analysis import Lead, Weighed, ancestry, leads, ranked, weighed
from tune.report.collect import SearchStory
from tune.report.importance import Importances, level
from tune.space.distributions import Categorical, Integer, Real
from tune.space.search_space import Parameter

RESPONSES = 8
"""No more parameters have a chart of their own: the most important."""
MEMBERS = 12
"""No more members of a population are drawn beside the best."""


def title(story: SearchStory) -> str:
    """Validation accuracy (%)."""
    name, _, unit = text.measured(story.metric)
    return f"{name[0].upper()}{name[1:]}{f' ({unit})' if unit else ''}"


def _scaled(story: SearchStory, values: Sequence[float]) -> list[float]:
    scale = text.measured(story.metric)[1]
    return [scale * value for value in values]


def _log(story: SearchStory, values: Sequence[float]) -> bool:
    return not text.measured(story.metric)[2] and spans_decades(Series([], list(values)))


def anytime(story: SearchStory) -> list[Chart]:
    """The best so far by steps computed, and by minutes of the search where its clock tells of all."""
    found, computed = leads(story)
    if not found:
        return []
    charts = [_anytime(story, found, "steps computed by all trials", [lead.steps for lead in found], computed)]
    minutes = [lead.seconds / 60 for lead in found]
    if all(map(math.isfinite, minutes)):
        charts.append(_anytime(story, found, "minutes of the search", minutes, max(story.spent / 60, minutes[-1])))
    return charts


def _anytime(story: SearchStory, found: Sequence[Lead], along: str, at: Sequence[float], end: float) -> Chart:
    """Stairs, with a dot where a trial took the lead."""
    y = _scaled(story, [lead.value for lead in found])
    stairs_x, stairs_y = [at[0]], [y[0]]
    for x, before, after in zip(at[1:], y, y[1:], strict=False):
        stairs_x += [x, x]
        stairs_y += [before, after]
    told = [
        f"trial {lead.trial}: {text.value(story, lead.value)} after {text.steps(lead.budget)} of its own"
        for lead in found
    ]
    # Two curves of one look: the stairs have no dots at their corners, which are not all results.
    curves = [
        Curve("best so far", 1, [*stairs_x, end], [*stairs_y, y[-1]], said=[""] * (len(stairs_x) + 1)),
        Curve("a trial takes the lead", 2, list(at), y, loose=True, said=told),
    ]
    unit = text.measured(story.metric)[2]
    drawn = chart(f"{title(story)}, best so far", Axis(along), curves, unit, _log(story, y))
    line = drawn.curves[0]._replace(dots=[], sample="")
    return drawn._replace(curves=[line, *drawn.curves[1:]])


def responses(story: SearchStory, found: Importances | None) -> tuple[int, list[Chart]]:
    """The value by each parameter, the most important first, at the budget that is returned."""
    budget = level(story.history)
    order = {one.name: place for place, one in enumerate(found.parameters)} if found else {}
    ordered = sorted(story.space.parameters, key=lambda one: order.get(one.name, math.inf))
    charts = [_response(story, parameter, budget) for parameter in ordered]
    return budget, [drawn for drawn in charts if drawn is not None][:RESPONSES]


def _response(story: SearchStory, parameter: Parameter, budget: int) -> Chart | None:
    """None: fewer than three trials have the parameter."""
    distribution, name = parameter.distribution, parameter.name
    seen = [
        (trial, value)
        for trial in story.history.trials
        if (value := trial.value_at(budget)) is not None and distribution.contains(trial.configuration.get(name))
    ]
    if len(seen) < 3:
        return None
    best = story.history.best()
    groups = [("trials", 1, [one for one in seen if one[0] is not best])]
    groups.append(("the best", 2, [one for one in seen if one[0] is best]))
    curves = []
    for label, look, rows in groups:
        x = [_along(parameter, trial) for trial, _ in rows]
        told = [f"trial {trial.number}: {text.value(story, value)}" for trial, value in rows]
        if rows:
            curves.append(Curve(label, look, x, _scaled(story, [value for _, value in rows]), loose=True, said=told))
    every = [y for curve in curves for y in curve.y]
    return chart(name, _axis(parameter), curves, text.measured(story.metric)[2], _log(story, every))


def _along(parameter: Parameter, trial: Trial) -> float:
    value = trial.configuration[parameter.name]
    return (
        float(parameter.distribution.index(value)) if isinstance(parameter.distribution, Categorical) else float(value)
    )


def _axis(parameter: Parameter) -> Axis:
    distribution = parameter.distribution
    if isinstance(distribution, Categorical):
        room = max(4, 44 // len(distribution.options))
        names = [text.setting(option) for option in distribution.options]
        return Axis(parameter.name, options=[text if len(text) <= room else f"{text[: room - 1]}…" for text in names])
    if isinstance(distribution, (Real, Integer)):
        return Axis(
            parameter.name,
            distribution.log,
            isinstance(distribution, Integer),
            span=(distribution.low, distribution.high),
        )
    return Axis(parameter.name)


def trade_offs(story: SearchStory) -> tuple[list[Weighed], list[Chart]]:
    """The trials that are weighed, and a chart for each cost, the front marked."""
    rows, objectives = weighed(story.history), story.history.objectives
    charts = []
    for i, name in enumerate(objectives if rows else ()):
        x = [row.costs[i] for row in rows]
        curves = []
        for label, look, chosen in (("trials", 0, False), ("on the front", 1, True)):
            some = [(at, row) for at, row in zip(x, rows, strict=True) if row.on_front is chosen]
            some.sort(key=lambda one: one[0])
            told = [f"trial {row.trial.number}: {text.value(story, row.value)}, {at:.4g}" for at, row in some]
            y = _scaled(story, [row.value for _, row in some])
            # Of two objectives the front is a line; of more it is a surface, of which the points are seen.
            loose = not chosen or len(objectives) > 1
            if some:
                curves.append(Curve(label, look, [at for at, _ in some], y, loose=loose, said=told))
        axis = Axis(text.COSTS.get(name, name), log=spans_decades(Series([], x)))
        charts.append(chart(title(story), axis, curves, text.measured(story.metric)[2]))
    return rows, charts


def lineage(story: SearchStory) -> list[Chart]:
    """Of a population: each setting that copies changed, by steps, along the ancestry of those that are left."""
    history = story.history
    copies = [trial for trial in history.trials if trial.parent is not None]
    changed = [
        parameter
        for parameter in story.space.parameters
        if isinstance(parameter.distribution, (Real, Integer))
        and any(
            trial.configuration.get(parameter.name) != history.trials[trial.parent].configuration.get(parameter.name)
            for trial in copies
            if trial.parent is not None
        )
    ]
    alive = [trial for trial in ranked(history) if trial.results and not trial.reason.startswith("copies")]
    return [drawn for parameter in changed if (drawn := _lineage(story, parameter, alive)) is not None]


def _lineage(story: SearchStory, parameter: Parameter, alive: Sequence[Trial]) -> Chart | None:
    curves = []
    for rank, trial in reversed(list(enumerate(alive[: MEMBERS + 1]))):
        x, y = _schedule(ancestry(story.history, trial.number), parameter.name)
        if not x:
            continue
        label = f"the best, trial {trial.number}" if rank == 0 else "others"
        curves.append(Curve(label, 1 if rank == 0 else 0, x, y, faint=rank > 1, said=[""] * len(x)))
    log = isinstance(parameter.distribution, (Real, Integer)) and parameter.distribution.log
    if not curves:
        return None
    drawn = chart(parameter.name, "steps", curves, log=log)
    return drawn._replace(curves=[curve._replace(dots=[], sample="") for curve in drawn.curves])


def _schedule(chain: Sequence[Trial], name: str) -> tuple[list[float], list[float]]:
    """A setting by steps, level between one copy and the next."""
    x: list[float] = []
    y: list[float] = []
    ends = [*(trial.start for trial in chain[1:]), chain[-1].budget]
    for trial, end in zip(chain, ends, strict=True):
        value = trial.configuration.get(name)
        if isinstance(value, (int, float)):
            x += [trial.start, end]
            y += [value, value]
    return x, y
