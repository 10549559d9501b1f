"""The figures of a search: what they show, which are drawn, and that too little to draw is no error."""

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from metatrain.report.plots import ORANGE, Panel, draw_panels
from tests.search_folders import (
    SPACE,
    accuracy,
    empty_search,
    finished_search,
    hostile_search,
    multi_objective_search,
    population_search,
    run_study,
    spec,
)
from tune.report import figures
from tune.report.analysis import compare_costs, list_improvements, summarize_rungs
from tune.report.collect import SearchRecord, collect
from tune.report.figures import save_figures
from tune.report.importance import importances
from tune.report.parallel_coordinates import ABSENT, parallel_coordinates
from tune.schedulers.asha import FullBudget
from tune.searchers.random_search import RandomSearch
from tune.study import Study


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> SearchRecord:
    return collect(finished_search(tmp_path_factory.mktemp("searches") / "whole"))


def axes_of(panels: list[Panel]) -> list[Any]:
    return draw_panels(panels).figure.axes


def lines_of(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_the_best_so_far_is_a_staircase_by_steps_and_by_minutes(whole):
    by_steps, by_minutes = axes_of(figures.best_so_far(whole))
    found, computed = list_improvements(whole)
    assert lines_of(by_steps)["new best value"] == (
        [lead.steps for lead in found],
        [100 * lead.value for lead in found],
    )
    assert lines_of(by_steps)["best so far"][0][-1] == computed
    assert lines_of(by_minutes)["new best value"][0] == [lead.seconds / 60 for lead in found]
    assert by_steps.get_ylabel() == "Validation accuracy (%)"


def test_rungs_and_importance_are_bars(whole):
    trials, steps = axes_of(figures.rung_counts(whole))
    found = summarize_rungs(whole.history)
    heights = [bar.get_height() for bar in trials.patches]
    assert heights == [rung.trials for rung in found] + [rung.went_on for rung in found]
    assert [bar.get_height() for bar in steps.patches] == [rung.steps for rung in found]
    (axes,) = axes_of(figures.importance(whole))
    shown = importances(whole.space, whole.history).parameters[::-1]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([100 * one.share for one in shown])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [one.name for one in shown]
    assert lines_of(axes)["what chance gives up to"][0] == pytest.approx([100 * one.chance for one in shown])


def test_the_values_by_each_parameter_are_those_of_one_budget(whole):
    budget, panels = figures.responses(whole)
    assert sorted(panel.title for panel in panels) == sorted(SPACE)
    assert panels[0].title == importances(whole.space, whole.history).parameters[0].name, "what matters comes first"
    seen = [trial for trial in whole.history.trials if trial.value_at(budget) is not None]
    charts = {panel.title: draw_panels([panel]).figure.axes[0] for panel in panels}
    x, y = (left + right for left, right in zip(*lines_of(charts["outer.lr"]).values(), strict=True))
    points = {(trial.configuration["outer.lr"], 100 * trial.value_at(budget)) for trial in seen}
    assert set(zip(x, y, strict=True)) == points
    assert charts["outer.lr"].get_xscale() == "log" and charts["outer.lr"].get_xlim() == (1e-4, 1e-1)
    assert [tick.get_text() for tick in charts["model"].get_xticklabels()] == ["conv4", "resnet12"]


def test_the_front_is_marked_among_the_trials_that_are_compared(tmp_path):
    story = collect(multi_objective_search(tmp_path / "search"))
    (axes,) = axes_of(figures.trade_offs(story))
    rows = compare_costs(story.history)
    for label, on_front in (("trials", False), ("on the front", True)):
        points = sorted((row.costs[0], 100 * row.value) for row in rows if row.on_front is on_front)
        assert list(zip(*lines_of(axes)[label], strict=True)) == points
    assert axes.get_xlabel() == "parameters"


def test_a_population_shows_the_settings_of_the_best_by_steps(tmp_path):
    story = collect(population_search(tmp_path / "search"))
    panels = figures.lineage(story)
    assert [panel.title for panel in panels] == ["outer.lr", "algorithm.inner_lr"]
    best = story.history.best()
    steps, rates = lines_of(axes_of(panels[:1])[0])[f"the best, trial {best.number}"]
    assert (steps[0], steps[-1]) == (0, best.budget)
    assert rates[-1] == best.configuration["outer.lr"]


def test_parallel_lines_lie_on_their_own_scales_and_absent_ones_apart(whole):
    (axes,) = axes_of(parallel_coordinates(whole))
    lines = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 1 + len(SPACE)]
    assert len(lines) == sum(bool(trial.results) for trial in whole.history.trials)
    assert [line.get_color() for line in axes.lines].count(ORANGE) == 1
    assert lines[-1][-1] == 1 and axes.lines[len(lines) - 1].get_color() == ORANGE, "the best lies on top"
    for line in lines:
        model, width = line[3], line[4]
        assert (width == ABSENT) == (model == 0.75), "a resnet12 has no width"
        assert all(0 <= place <= 1 for place in line if place != ABSENT)
    marks = [(round(text.get_position()[0], 2), text.get_position()[1], text.get_text()) for text in axes.texts]
    assert [mark for mark in marks if mark[2] == "absent"] == [(4.03, ABSENT, "absent")]
    rates = sorted((place, label) for x, place, label in marks if x == 0.03)
    assert [label for _, label in rates] == ["0.001", "0.01", "0.1", "1"]
    assert [place for place, _ in rates] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert axes.get_xticklabels()[-1].get_text() == "Validation\naccuracy (%)"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_better_lies_higher_on_the_last_axis(tmp_path, mode):
    home = empty_search(tmp_path / "search", metric="validation/loss")
    the_spec = spec(trials=5, metric="validation/loss", mode=mode, scheduler=FullBudget(10))
    run_study(home, the_spec, lambda trial, budget: 1.0 + trial.number)
    (axes,) = axes_of(parallel_coordinates(collect(home)))
    places = [line.get_ydata()[-1] for line in axes.lines[:5]]
    assert places == pytest.approx([0, 0.25, 0.5, 0.75, 1]), "the last to the best"


def test_a_whole_search_has_every_picture_but_those_of_objectives(whole, tmp_path):
    drawn = save_figures(whole, tmp_path / "plots")
    assert names(drawn) == ["parallel-coordinates.png", "importance.png", "anytime.png", "rungs.png"]
    assert sorted(drawn) == sorted((tmp_path / "plots").iterdir()), "nothing is left beside them"
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.width > 700 and picture.height > 250
            assert picture.text["Description"]


@pytest.mark.parametrize("value", ["out of memory", math.nan, math.inf])
def test_without_a_result_there_is_nothing_to_draw(tmp_path, value):
    home = empty_search(tmp_path / "search")
    assert save_figures(collect(home), tmp_path / "plots") == []
    run_study(home, spec(trials=20), lambda trial, budget: value)
    assert save_figures(collect(home), tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("metric", ["validation/accuracy", "validation/loss"])
@pytest.mark.parametrize("trials", [1, 2, 12])
def test_few_trials_with_one_parameter_and_equal_values_are_drawn(tmp_path, trials, metric):
    space = {"outer.lr": "loguniform(1e-4, 1e-1)"}
    home = empty_search(tmp_path / "search", space, metric=metric)
    mode = "max" if metric.endswith("accuracy") else "min"
    run_study(home, spec(space, trials, metric=metric, mode=mode), lambda trial, budget: 0.0)
    drawn = save_figures(collect(home), tmp_path / "plots")
    assert names(drawn) == ["parallel-coordinates.png", "anytime.png", "rungs.png"]


def test_values_far_apart_and_a_clock_that_is_missing_are_drawn(tmp_path):
    space = {"outer.lr": "loguniform(1e-4, 1e-1)", "algorithm.inner_steps": "int(1, 2)"}
    home = empty_search(tmp_path / "search", space, metric="validation/mse")
    the_spec = spec(space, 15, metric="validation/mse", mode="min", searcher=RandomSearch())
    run_study(home, the_spec, lambda trial, budget: 10.0 ** (trial.number % 9 * 30 - 120))
    (home.path / "clock.jsonl").unlink()
    assert len(save_figures(collect(home), tmp_path / "plots")) == 4
    assert len(figures.best_so_far(collect(home))) == 1


def test_costs_that_were_not_reported_are_left_out(tmp_path):
    home = empty_search(tmp_path / "search", objectives=["parameters"])
    the_spec = spec(trials=15, objectives=("parameters",))
    run_study(home, the_spec, lambda trial, budget: accuracy(trial.configuration, budget))
    assert "pareto.png" not in names(save_figures(collect(home), tmp_path / "plots"))


def test_text_is_never_mathematics(tmp_path):
    home = hostile_search(tmp_path / "evil")
    assert len(save_figures(collect(home), tmp_path / "plots")) == 5
    space = {"a$b$": "choice($x, $\\frac$, y)", "outer.lr": "uniform(0, 1)"}
    home = empty_search(tmp_path / "dollars", space)
    with Study(spec(space, 12, searcher=RandomSearch()), home.path / "journal.jsonl") as search:
        while (trial := search.next_trial()) is not None:
            search.report(trial.number, 100, trial.configuration["outer.lr"])
    assert len(save_figures(collect(home), tmp_path / "plots")) >= 4
