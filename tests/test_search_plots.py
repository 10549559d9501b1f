"""The pictures of a search: which are drawn, and that too little to draw is no error."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.search_folders import accuracy, evil, grown, made, population, searched, spec, weighing
from tune.report.collect import collect
from tune.report.plots import PLOTS, plots
from tune.searchers.random_search import RandomSearch
from tune.study import Study


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def coloured(path: Path, colour: tuple[int, int, int]) -> int:
    """Pixels of about a colour."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    return int((abs(pixels - colour).max(axis=2) < 25).sum())


def test_a_whole_search_has_every_picture_but_those_of_objectives(tmp_path):
    drawn = plots(collect(searched(tmp_path / "search")), tmp_path / "plots")
    assert names(drawn) == ["parallel-coordinates.png", "importance.png", "anytime.png", "rungs.png"]
    assert sorted(drawn) == sorted((tmp_path / "plots").iterdir()), "nothing is left beside them"
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.width > 700 and picture.height > 250
            assert picture.text["Description"]
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    assert coloured(drawn[0], (217, 130, 43)) > 500, "the best has a colour of its own"


def test_objectives_have_a_picture_of_their_front(tmp_path):
    drawn = plots(collect(weighing(tmp_path / "search")), tmp_path)
    assert names(drawn) == list(PLOTS)
    assert coloured(drawn[-1], (31, 95, 191)) > 300


def test_a_population_is_drawn(tmp_path):
    assert "rungs.png" in names(plots(collect(population(tmp_path / "search")), tmp_path))


@pytest.mark.parametrize("value", ["out of memory", math.nan, math.inf])
def test_without_a_result_there_is_nothing_to_draw(tmp_path, value):
    home = made(tmp_path / "search")
    assert plots(collect(home), tmp_path / "plots") == []
    grown(home, spec(trials=20), lambda trial, budget: value)
    assert plots(collect(home), tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("metric", ["validation/accuracy", "validation/loss"])
@pytest.mark.parametrize("trials", [1, 2, 12])
def test_few_trials_with_one_parameter_and_equal_values_are_drawn(tmp_path, trials, metric):
    space = {"outer.lr": "loguniform(1e-4, 1e-1)"}
    home = made(tmp_path / "search", space, metric=metric)
    mode = "max" if metric.endswith("accuracy") else "min"
    grown(home, spec(space, trials, metric=metric, mode=mode), lambda trial, budget: 0.0)
    drawn = plots(collect(home), tmp_path / "plots")
    assert names(drawn) == ["parallel-coordinates.png", "anytime.png", "rungs.png"]


def test_values_far_apart_and_a_clock_that_is_missing_are_drawn(tmp_path):
    space = {"outer.lr": "loguniform(1e-4, 1e-1)", "algorithm.inner_steps": "int(1, 2)"}
    home = made(tmp_path / "search", space, metric="validation/mse")
    the_spec = spec(space, 15, metric="validation/mse", mode="min", searcher=RandomSearch())
    grown(home, the_spec, lambda trial, budget: 10.0 ** (trial.number % 9 * 30 - 120))
    (home.path / "clock.jsonl").unlink()
    assert len(plots(collect(home), tmp_path / "plots")) == 4


def test_costs_that_nobody_told_are_left_out(tmp_path):
    home = made(tmp_path / "search", objectives=["parameters"])
    the_spec = spec(trials=15, objectives=("parameters",))
    grown(home, the_spec, lambda trial, budget: accuracy(trial.configuration, budget))
    assert "pareto.png" not in names(plots(collect(home), tmp_path / "plots"))


def test_words_are_never_mathematics(tmp_path):
    home = evil(tmp_path / "evil")
    assert len(plots(collect(home), tmp_path / "plots")) == 5
    space = {"a$b$": "choice($x, $\\frac$, y)", "outer.lr": "uniform(0, 1)"}
    home = made(tmp_path / "dollars", space)
    with Study(spec(space, 12, searcher=RandomSearch()), home.path / "journal.jsonl") as search:
        while (trial := search.next_trial()) is not None:
            search.report(trial.number, 100, trial.configuration["outer.lr"])
    assert len(plots(collect(home), tmp_path / "plots")) >= 4
