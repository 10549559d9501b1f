"""Who goes on: against a reference that knows nothing of ours, and the laws of halving."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.history.trials import History, Trial
from tune.schedulers.asha import ASHA, FullBudget

RESULTS = st.lists(st.tuples(st.integers(0, 11), st.sampled_from([0.0, 1.0, 2.5, -3.0, 7.0])), max_size=60)


def reference(came: list[tuple[int, float]], number: int, eta: int) -> bool:
    """Sort all that is in at a rung, first come first; whoever is in the best share, one at least, goes on."""
    ranked = sorted(range(len(came)), key=lambda i: (came[i][1], i))
    return number in [came[i][0] for i in ranked[: max(1, len(came) // eta)]]


@settings(deadline=None)
@given(RESULTS, st.integers(2, 4), st.integers(1, 3), st.sampled_from(["min", "max"]))
def test_decisions_are_those_of_the_reference(results, eta, brackets, mode):
    schedule = ASHA(1, eta**3, eta, brackets)
    history, sign = History(mode), 1 if mode == "min" else -1
    for number in range(12):
        history = history.with_trial(Trial(number, {}))
    rungs: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for number, value in results:
        trial = history.trial(number)
        due = [rung for rung in schedule.budgets(number) if rung > trial.budget]
        if trial.status != "running" or not due:
            continue
        history = history.with_result(number, due[0], sign * value)
        came = rungs.setdefault((number % brackets, due[0]), [])
        came.append((number, value))
        decision = schedule.decide(history, number)
        assert (decision == "continue") == (len(due) == 1 or reference(came, number, eta))
        if decision == "stop":
            history = history.with_end(number, "stopped")


def test_rungs_rise_by_eta_and_end_at_the_whole_budget():
    assert ASHA(1, 27).budgets(5) == (1, 3, 9, 27)
    assert ASHA(100, 1000).budgets(0) == (100, 300, 900, 1000)
    assert ASHA(5, 5).budgets(0) == (5,)
    assert [ASHA(1, 27, brackets=3).budgets(i) for i in range(4)] == [
        (1, 3, 9, 27),
        (3, 9, 27),
        (9, 27),
        (1, 3, 9, 27),
    ]
    assert FullBudget(7).budgets(3) == (7,)


def test_of_many_trials_a_third_goes_on_from_each_rung():
    """In random order about 1 in η; more early on, when few are in to compare with."""
    schedule, history = ASHA(1, 27), History()
    for number in range(600):
        history = history.with_trial(Trial(number, {}))
        for budget in schedule.budgets(number):
            history = history.with_result(number, budget, math.sin(number * 12.9898) * 43758.5453 % 1)
            if schedule.decide(history, number) == "stop":
                history = history.with_end(number, "stopped")
                break
    reached = [sum(budget == rung for _, budget in history.result_order) for rung in schedule.budgets(0)]
    assert reached[0] == 600
    assert 180 <= reached[1] <= 260
    assert 50 <= reached[2] <= 130


def test_who_came_first_wins_a_tie():
    schedule, history = ASHA(1, 9), History()
    decisions = []
    for number in range(9):
        history = history.with_trial(Trial(number, {})).with_result(number, 1, 0.5)
        decisions.append(schedule.decide(history, number))
    assert decisions == ["continue"] + ["stop"] * 8


def test_schedules_that_cannot_be_are_refused():
    for make, wrong in (
        (lambda: ASHA(0, 9), "search.method.min_budget: 0 is not a positive number: set it above 0"),
        (lambda: ASHA(10, 9), "search.method.min_budget: 10 is above max_budget, 9: lower it"),
        (lambda: ASHA(1, 9, eta=1), "search.method.eta: 1 is below 2: set 2 or more, such as 3"),
        (lambda: ASHA(1, 9, brackets=4), "search.method.brackets: 4 are more than the 3 rungs: set 3 or fewer"),
        (lambda: FullBudget(0), "search.method.max_budget: 0 is not a positive number: set it above 0"),
    ):
        with pytest.raises(ValueError, match=wrong.replace("(", r"\(")):
            make()
