"""The benchmark's objectives: their optima, what budgets cost, and that a race is what it says it is."""

import itertools
import math

import numpy as np
import pytest

from benchmarks.search import budget_to_reach, median_interval
from benchmarks.search_objectives import OBJECTIVES, Objective
from benchmarks.search_race import METHODS, WORKERS, race

PUBLISHED = {"counting ones 8+8": -16.0, "Currin": -13.7987, "Borehole": -309.5756, "Hartmann-6": -3.32237}


@pytest.fixture(params=OBJECTIVES, ids=lambda objective: objective.name)
def objective(request: pytest.FixtureRequest) -> Objective:
    return request.param


def test_the_minimum_is_where_it_is_said_to_be_and_as_published(objective):
    assert objective.minimum == pytest.approx(PUBLISHED[objective.name], rel=1e-5)
    assert objective.space.contains({name: _typed(objective, name, x) for name, x in objective.minimiser.items()})
    assert abs(objective.regret(objective.minimiser)) < 1e-6


def _typed(objective: Objective, name: str, x: float) -> float:
    return int(x) if name.startswith("category") else float(x)


def test_nothing_is_below_the_minimum(objective):
    """Neither a thousand draws, nor small steps from the minimiser."""
    regrets = [objective.regret(objective.space.sample(0, number)) for number in range(1000)]
    assert min(regrets) > 0
    near = dict(objective.minimiser)
    for number in range(1000):
        drawn = objective.space.sample(1, number)
        steps = {
            name: near[name] + 0.01 * (drawn[name] - near[name]) for name in near if not name.startswith("category")
        }
        assert objective.regret({**near, **steps}) > -1e-6


def test_the_whole_budget_tells_the_truth_and_small_ones_nearly(objective):
    drawn = [objective.space.sample(0, number) for number in range(300)]
    whole = [objective.observed(x, objective.schedule.max_budget, (0, i)) for i, x in enumerate(drawn)]
    small = [objective.observed(x, objective.schedule.min_budget, (0, i)) for i, x in enumerate(drawn)]
    true = [objective.true_loss(x) for x in drawn]
    if objective.name.startswith("counting"):
        assert np.std(np.subtract(whole, true)) < np.std(np.subtract(small, true)) / 3
    else:
        assert whole == true
        assert small != true
    assert 0.8 < np.corrcoef(small, true)[0, 1] < 1


def test_a_race_spends_what_it_is_given_and_can_be_run_again():
    for objective, method in itertools.product(OBJECTIVES[1:3], ("random", "ASHA", "BOHB")):
        trace = race(objective, METHODS[method], 0, 6)
        assert trace == race(objective, METHODS[method], 0, 6)
        spent = [budget for budget, _ in trace]
        assert spent == sorted(spent)
        assert spent[-1] <= 6
        first = WORKERS * (1 if method == "random" else 1 / 27)
        assert spent[0] == pytest.approx(first)


def test_intervals_and_shares():
    trace = [(1.0, 5.0), (2.0, 3.0), (3.0, 4.0), (5.0, 3.5), (7.0, 1.0)]
    assert [budget_to_reach(trace, target) for target in (5.0, 4.0, 3.0, 0.5)] == [1.0, 2.0, 7.0, math.inf]
    middle, low, high = median_interval(np.arange(1.0, 21.0))
    assert middle == 10
    assert 5 <= low < middle < high <= 16
    assert median_interval(np.array([1.0, math.inf, math.inf]))[0] == math.inf
