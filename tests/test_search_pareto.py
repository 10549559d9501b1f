"""Several objectives: the sorting against definitions written out, and a search that keeps a front."""

import itertools
import json
import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance_searchers import SPACE, searched, spec_of
from tune.history.pareto import crowding_distance, front_numbers, pareto_front, rank_points
from tune.history.trials import History, Trial
from tune.schedulers.asha import ASHA, FullBudget
from tune.schedulers.pbt import PBT
from tune.searchers.bohb import BOHB
from tune.searchers.evolution import Evolution
from tune.searchers.observations import observations
from tune.searchers.random_search import RandomSearch
from tune.space.search_space import read_space
from tune.study import Study, StudySpec


def clouds(numbers, most=12):
    """Points of two or three objectives, with ties."""
    return st.integers(2, 3).flatmap(lambda m: st.lists(st.tuples(*[numbers] * m), max_size=most))


SMALL = st.integers(0, 4).map(float)
ANY = st.floats(min_value=-1.7e308, allow_nan=False)


def beats(a, b):
    """Deb et al. 2002, written out once more."""
    worse, better = False, False
    for x, y in zip(a, b, strict=True):
        worse, better = worse or x > y, better or x < y
    return better and not worse


@settings(deadline=None)
@given(clouds(st.one_of(SMALL, ANY)))
def test_fronts_are_what_is_left_when_those_before_are_taken_away(points):
    expected, left, number = [-1] * len(points), set(range(len(points))), 0
    while left:
        free = {i for i in left if not any(beats(points[j], points[i]) for j in left)}
        for i in free:
            expected[i] = number
        left, number = left - free, number + 1
    assert front_numbers(points) == expected
    assert pareto_front(points) == [i for i in range(len(points)) if expected[i] == 0]


@settings(deadline=None)
@given(clouds(st.integers(-30, 30).map(float)))
def test_crowding_is_the_sum_of_the_gaps_between_neighbours(points):
    expected = [0.0] * len(points)
    for j in range(len(points[0]) if points else 0):
        order = sorted(range(len(points)), key=lambda i: (points[i][j], i))
        span = points[order[-1]][j] - points[order[0]][j]
        for place, i in enumerate(order):
            if span > 0:
                ends = place in (0, len(order) - 1)
                gap = math.inf if ends else points[order[place + 1]][j] - points[order[place - 1]][j]
                expected[i] += gap / span
    assert crowding_distance(points) == pytest.approx(expected)


@settings(deadline=None)
@given(clouds(ANY))
def test_crowding_is_a_number_however_large_or_unknown_the_objectives_are(points):
    assert all(distance >= 0 for distance in crowding_distance(points))


@settings(deadline=None)
@given(clouds(st.one_of(SMALL, ANY)))
def test_a_rank_is_how_many_are_better_and_who_dominates_is(points):
    front, places = front_numbers(points), rank_points(points)
    assert sorted(places) == [sum(other < place for other in places) for place in sorted(places)]
    for i, j in itertools.product(range(len(points)), repeat=2):
        if front[i] < front[j]:
            assert places[i] < places[j]


def test_in_a_front_those_apart_come_first():
    """The ends, then the middle one that is far from its neighbours."""
    points = [(0.0, 10.0), (1.0, 9.0), (2.0, 8.0), (6.0, 4.0), (10.0, 0.0), (6.0, 6.0)]
    assert front_numbers(points) == [0, 0, 0, 0, 0, 1]
    assert crowding_distance(points[:5]) == [math.inf, 0.4, 1.0, 1.6, math.inf]
    assert rank_points(points) == [0, 4, 3, 2, 0, 5]


def history_of(*results: tuple[float, float | None], mode: str = "min", budget: int = 1) -> History:
    history = History(mode, objectives=("parameters",))
    for number, (value, cost) in enumerate(results):
        costs = {} if cost is None else {"parameters": cost}
        history = history.with_trial(Trial(number, {"rate": number / 10})).with_result(number, budget, value, costs)
    return history


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_front_is_of_those_that_went_furthest_and_the_best_has_the_best_metric(mode):
    sign = 1 if mode == "min" else -1
    values = [(0.5 * sign, 100.0), (0.3 * sign, 900.0), (0.6 * sign, 200.0), (0.3 * sign, 800.0), (0.0, 1.0)]
    history = history_of(*values, mode=mode)
    for number in range(4):
        history = history.with_result(number, 3, values[number][0])
    assert [trial.number for trial in history.front()] == [3, 0]
    assert history.best().number == 3
    assert dict(history.trial(0).costs) == {"parameters": 100.0}


def test_with_one_objective_the_front_are_the_equally_best():
    history = History()
    for number, value in enumerate((2.0, 1.0, 1.0)):
        history = history.with_trial(Trial(number, {})).with_result(number, 1, value)
    assert [trial.number for trial in history.front()] == [1, 2]
    assert history.best().number == 1
    assert History().front() == ()


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8), st.sampled_from(["min", "max"]))
def test_with_one_objective_losses_are_the_values_themselves(values, mode):
    history = History(mode)
    assert history.losses([(Trial(0, {}), value) for value in values]) == [history.loss(value) for value in values]


@pytest.mark.parametrize("cost", [None, math.nan, math.inf])
def test_what_is_not_known_is_the_worst(cost):
    """Worse than any number: of equal values the one with a cost goes first, however large the cost is."""
    history = history_of((0.5, cost), (0.5, 1e300), (0.4, cost))
    results = [(trial, trial.results[-1][1]) for trial in history.trials]
    assert history.losses(results) == [2.0, 0.0, 0.0]
    assert history.point(*results[0]) == (0.5, math.inf)


def test_halving_keeps_the_first_fronts():
    """A cheap trial goes on beside an accurate one, where by the metric alone it would be stopped."""
    came = [(0.1, 900.0), (0.2, 950.0), (0.3, 990.0), (0.4, 800.0), (0.5, 999.0), (0.9, 10.0)]
    history, schedule = history_of(*came), ASHA(1, 9)
    assert schedule.decide(history, 5) == "continue"
    alone = History(history.mode, history.trials, history.result_order)
    assert schedule.decide(alone, 5) == "stop"
    dear = history_of(*came[:5], (0.9, 1000.0))
    assert schedule.decide(dear, 5) == "stop"


def test_evolution_and_populations_take_who_is_on_the_front():
    """By the metric alone trial 0 would always win, and trial 1, which costs less, be the worst."""
    history = history_of((0.1, 900.0), (0.9, 10.0), (0.5, 950.0), (0.6, 980.0))
    assert {Evolution(4, 4).select_parent(history, 4, seed).number for seed in range(20)} == {0, 1}
    worse = history_of((0.5, 901.0), (0.5, 900.0), (0.91, 950.0), (0.92, 980.0))
    assert Evolution(4, 4).select_parent(worse, 4, 0).number == 1
    space = read_space({"rate": "uniform(0, 1)"})
    population = PBT(("rate",), 1, 9, members=4, quantile=0.5)
    assert {population.choose_copy(space, history, 3, seed).parent for seed in range(20)} == {0, 1}
    assert population.choose_copy(space, history, 1, 0) is None


def test_models_see_the_place_among_those_of_a_budget():
    history = history_of((0.1, 900.0), (0.9, 10.0), (0.91, 950.0), (0.92, 980.0)).with_end(3, "failed")
    history = history.with_trial(Trial(4, {"rate": 0.4})).with_end(4, "nan").with_trial(Trial(5, {"rate": 0.5}))
    expected = [({"rate": 0.0}, 0.0), ({"rate": 0.1}, 0.0), ({"rate": 0.2}, 2.0), ({"rate": 3 / 10}, 3.0)]
    assert observations(history, 1) == [*expected, ({"rate": 0.4}, math.inf)]


TWO = read_space({"width": "logint(8, 512)", "rate": "loguniform(1e-4, 1)"})


def weighed(configuration) -> tuple[float, dict[str, float]]:
    """An error that falls with width, by the law of a power, and rises away from a rate of 0.01; parameters, width²."""
    width = configuration["width"]
    return width**-0.5 + 0.1 * math.log10(configuration["rate"] / 0.01) ** 2, {"parameters": float(width**2)}


def volume(searcher, objectives, seed, path) -> float:
    """What the trials of a search dominate, in decades of parameters."""
    spec = StudySpec(TWO, searcher, FullBudget(1), "error", "min", seed, trials=60, objectives=objectives)
    with Study(spec, path) as search:
        while (trial := search.next_trial()) is not None:
            search.report(trial.number, 1, *weighed(trial.configuration))
        found = [weighed(trial.configuration) for trial in search.history.trials]
    return area([(error, math.log10(costs["parameters"])) for error, costs in found], 1.0, 6.0)


def area(points, right, top) -> float:
    """Of what points in two objectives dominate up to a corner."""
    found, lowest = 0.0, top
    for x, y in sorted(points):
        if x < right and y < lowest:
            found, lowest = found + (right - x) * (lowest - y), y
    return found


def test_a_model_of_both_dominates_more_than_one_of_the_metric_or_none(tmp_path):
    """Median over seeds: the metric alone finds wide networks only."""
    asked = {"both": (BOHB(), ("parameters",)), "metric": (BOHB(), ()), "random": (RandomSearch(), ())}
    found = {
        name: sorted(volume(searcher, names, seed, tmp_path / f"{name}{seed}.jsonl") for seed in range(5))[2]
        for name, (searcher, names) in asked.items()
    }
    assert found["both"] > found["metric"]
    assert found["both"] > found["random"]


def test_costs_are_in_the_journal_and_come_back_from_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    spec = StudySpec(TWO, RandomSearch(), ASHA(1, 9), "error", "min", trials=9, objectives=("parameters", "operations"))
    with Study(spec, path) as search:
        for number in range(3):
            search.next_trial()
            costs = {"parameters": 10 - number, "operations": math.nan, "seconds": 3.0}
            assert search.report(number, 1, 0.5 + number, costs) == ("stop" if number else "continue")
        search.report(0, 3, 0.4)
        history, front = search.history, search.history.front()
        assert [trial.number for trial in front] == [0]
    header, *events = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert header["objectives"] == ["parameters", "operations"]
    results = [event for event in events if event["event"] == "result"]
    assert list(results[0]) == ["event", "trial", "budget", "value", "costs", "status"]
    assert [event.get("costs") for event in results] == [{"parameters": 10.0 - i} for i in range(3)] + [None]
    with Study(spec, path) as search:
        assert search.history == history
        assert search.history.front() == front


def test_a_result_is_judged_by_its_own_costs_at_once(tmp_path):
    """The same values, the third cheap or dear: it goes on, or is stopped."""
    for cost, decision in ((1.0, "continue"), (9.0, "stop"), (math.nan, "stop")):
        spec = StudySpec(TWO, RandomSearch(), ASHA(1, 9), "error", "min", trials=9, objectives=("parameters",))
        with Study(spec, tmp_path / f"{cost}.jsonl") as search:
            for _ in range(6):
                search.next_trial()
            for number in range(5):
                search.report(number, 1, 0.1 * number, {"parameters": 2.0 + number})
            assert search.report(5, 1, 0.6, {"parameters": cost}) == decision


def test_without_objectives_a_journal_is_what_it_was(tmp_path):
    with Study(spec_of(RandomSearch()), tmp_path / "plain.jsonl") as search:
        search.next_trial()
        search.report(0, 1, 0.5, {"parameters": 3.0})
    header, _, result = [json.loads(line) for line in (tmp_path / "plain.jsonl").read_bytes().splitlines()]
    assert list(header) == ["format", "seed", "metric", "mode", "space", "searcher", "schedule"]
    assert result == {"event": "result", "trial": 0, "budget": 1, "value": 0.5, "status": "running"}


def test_a_journal_with_other_objectives_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    plain = spec_of(RandomSearch(), trials=3)
    weighing = StudySpec(**{**vars(plain), "objectives": ("parameters",)})
    for first, then, wrong in (
        (plain, weighing, "its objectives is left out, not ['parameters']: set it so"),
        (weighing, plain, "its objectives is ['parameters'], not left out: set it so"),
    ):
        path.unlink(missing_ok=True)
        searched(first, path)
        with pytest.raises(ValueError, match=re.escape(wrong)):
            Study(then, path)


def test_searchers_go_on_with_objectives_as_they_do_without(tmp_path):
    """Killed after any line, a search of several objectives writes the same journal."""
    spec = StudySpec(SPACE, BOHB(least=6, startup=4), ASHA(1, 9), "loss", "min", trials=16, objectives=("parameters",))

    def run(path):
        with Study(spec, path) as search:
            while trial := search.running[0] if search.running else search.next_trial():
                drawn = random.Random(trial.number)
                due = next(budget for budget in search.budgets(trial.number) if budget > trial.budget)
                search.report(trial.number, due, drawn.random() + 1 / due, {"parameters": drawn.random()})

    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run(whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    for count in range(0, len(lines), 3):
        cut.write_bytes(b"".join(lines[:count]))
        run(cut)
        assert cut.read_bytes() == whole.read_bytes()
