"""Population-based training: who copies whom, and what of it is changed."""

import re

import pytest

from tune.history import History, Trial
from tune.population import Population
from tune.space import read_space

SPACE = read_space(
    {
        "outer.lr": "loguniform(1e-4, 1e-1)",
        "algorithm.inner_lr": {"from": "uniform(0.1, 1)", "when": {"algorithm.steps": [1, 2, 3, 4, 5]}},
        "algorithm.steps": "int(1, 5)",
        "model.width": "int(8, 64)",
    }
)
PBT = Population(("outer.lr", "algorithm.inner_lr"), interval=10, max_budget=100)


def population(mode: str = "min", members: int = 8, budget: int = 10) -> History:
    history = History(mode)
    for number in range(members):
        history = history.began(Trial(number, SPACE.sample(0, number)))
        history = history.reported(number, budget, float(number if mode == "min" else -number))
    return history


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_worst_quarter_copies_the_best_quarter(mode):
    history = population(mode)
    for number in range(8):
        copies = [PBT.decide(SPACE, history, number, seed) for seed in range(30)]
        if number < 6:
            assert copies == [None] * 30
        else:
            assert {copy.parent for copy in copies} == {0, 1}
            assert {copy.start for copy in copies} == {10}


def test_only_what_is_explored_changes_and_stays_in_the_space():
    history, seen = population(), set()
    for seed in range(100):
        copy = PBT.decide(SPACE, history, 7, seed)
        parent = history.trial(copy.parent).configuration
        assert SPACE.contains(copy.configuration)
        assert copy.configuration["model.width"] == parent["model.width"]
        assert copy.configuration["algorithm.steps"] == parent["algorithm.steps"]
        ratio = copy.configuration["outer.lr"] / parent["outer.lr"]
        seen.add("up" if abs(ratio - 1.2) < 1e-9 else "down" if abs(ratio * 1.2 - 1) < 1e-9 else "anew")
    assert seen == {"up", "down", "anew"}


def test_a_decision_is_a_pure_function():
    history = population()
    assert PBT.decide(SPACE, history, 7, 3) == PBT.decide(SPACE, history, 7, 3)
    assert len({str(PBT.decide(SPACE, history, 7, seed)) for seed in range(10)}) > 5


def test_the_failed_and_the_replaced_are_nobodys_parents():
    history = population().ended(0, "failed").ended(1, "stopped")
    parents = {PBT.decide(SPACE, history, 7, seed).parent for seed in range(30)}
    assert parents == {2}


def test_at_the_end_and_alone_nobody_copies():
    assert PBT.decide(SPACE, population(budget=100), 7, 0) is None
    assert PBT.decide(SPACE, population(members=1), 0, 0) is None
    assert PBT.decide(SPACE, population(members=2), 1, 0).parent == 0


def test_when_members_are_compared():
    assert Population(("a",), 30, 100).budgets() == (30, 60, 90, 100)


def test_populations_that_cannot_be_are_refused():
    for change, wrong in (
        ({"explored": ()}, "population.explored: is empty: name parameters"),
        ({"members": 1}, "population.members: 1 has nobody to copy"),
        ({"quantile": 0.6}, "population.quantile: 0.6 must be above 0 and at most 0.5"),
        ({"factor": 1.0}, "population.factor: 1 must be above 1: set 1.2"),
        ({"resample": 2.0}, "population.resample: 2 is no probability: set 0 to 1"),
    ):
        with pytest.raises(ValueError, match=wrong):
            Population(**{"explored": ("outer.lr",), "interval": 10, "max_budget": 100, **change})
    with pytest.raises(
        ValueError, match=re.escape("population.explored: no 'outer.rate' in the space: choose among outer.lr")
    ):
        Population(("outer.rate",), 10, 100).check(SPACE)
