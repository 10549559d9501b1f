"""Population-based training: who copies whom, and what of it is changed."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tune.history.trials import History, Trial
from tune.schedulers.pbt import PBT, is_explorable
from tune.searchers.random_search import RandomSearch
from tune.space.search_space import read_space
from tune.study import StopReason, Study, StudySpec

SPACE = read_space(
    {
        "outer.lr": "loguniform(1e-4, 1e-1)",
        "algorithm.inner_lr": {"from": "uniform(0.1, 1)", "when": {"algorithm.steps": [1, 2, 3, 4, 5]}},
        "algorithm.steps": "int(1, 5)",
        "model.width": "int(8, 64)",
    }
)
SCHEDULER = PBT(("outer.lr", "algorithm.inner_lr"), interval=10, max_budget=100)


def population(mode: str = "min", members: int = 8, budget: int = 10) -> History:
    history = History(mode)
    for number in range(members):
        history = history.with_trial(Trial(number, SPACE.sample(0, number)))
        history = history.with_result(number, budget, float(number if mode == "min" else -number))
    return history


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_worst_quarter_copies_the_best_quarter(mode):
    history = population(mode)
    for number in range(8):
        copies = [SCHEDULER.choose_copy(SPACE, history, number, seed) for seed in range(30)]
        if number < 6:
            assert copies == [None] * 30
        else:
            assert {copy.parent for copy in copies} == {0, 1}
            assert {copy.start for copy in copies} == {10}


def test_only_what_is_explored_changes_and_stays_in_the_space():
    history, seen = population(), set()
    for seed in range(100):
        copy = SCHEDULER.choose_copy(SPACE, history, 7, seed)
        parent = history.trial(copy.parent).configuration
        assert SPACE.contains(copy.configuration)
        assert copy.configuration["model.width"] == parent["model.width"]
        assert copy.configuration["algorithm.steps"] == parent["algorithm.steps"]
        ratio = copy.configuration["outer.lr"] / parent["outer.lr"]
        seen.add("up" if abs(ratio - 1.2) < 1e-9 else "down" if abs(ratio * 1.2 - 1) < 1e-9 else "anew")
    assert seen == {"up", "down", "anew"}


def test_a_decision_is_a_pure_function():
    history = population()
    assert SCHEDULER.choose_copy(SPACE, history, 7, 3) == SCHEDULER.choose_copy(SPACE, history, 7, 3)
    assert len({str(SCHEDULER.choose_copy(SPACE, history, 7, seed)) for seed in range(10)}) > 5


def test_the_failed_and_the_replaced_are_nobodys_parents():
    history = population().with_end(0, "failed").with_end(1, "stopped")
    parents = {SCHEDULER.choose_copy(SPACE, history, 7, seed).parent for seed in range(30)}
    assert parents == {2}


def test_members_are_compared_and_copied_at_the_same_budget():
    """Who went on is no better for it, nor copied as he is now: however few train side by side, the last may copy."""
    history = population()
    for number in range(4):
        history = history.with_result(number, 20, -100.0)
    history = history.with_result(0, 100, 9.0).with_end(0, "completed")
    assert {SCHEDULER.choose_copy(SPACE, history, 7, seed)[:2] for seed in range(30)} == {(0, 10), (1, 10)}
    ahead = history.with_result(5, 20, 0.0)
    assert {SCHEDULER.choose_copy(SPACE, ahead, 5, seed).start for seed in range(30)} == {20}
    assert SCHEDULER.choose_copy(SPACE, history.with_result(5, 30, 50.0), 5, 0) is None


def test_at_the_end_and_alone_nobody_copies():
    assert SCHEDULER.choose_copy(SPACE, population(budget=100), 7, 0) is None
    assert SCHEDULER.choose_copy(SPACE, population(members=1), 0, 0) is None
    assert SCHEDULER.choose_copy(SPACE, population(members=2), 1, 0).parent == 0


def test_when_members_are_compared():
    assert PBT(("a",), 30, 100).budgets(5) == (30, 60, 90, 100)


@pytest.fixture
def spec() -> StudySpec:
    return StudySpec(SPACE, RandomSearch(), PBT(("outer.lr",), 10, 30, members=4), "loss", "min")


def test_a_result_and_the_copy_that_it_decides_are_one_line(spec, tmp_path):
    path = tmp_path / "journal.jsonl"
    with Study(spec, path) as search:
        for _ in range(4):
            search.next_trial()
        for number in range(4):
            lines = path.read_bytes().count(b"\n")
            decision = search.report(number, 10, float(number))
            assert path.read_bytes().count(b"\n") == lines + 1
            assert decision == ("continue" if number == 0 else "stop")
        copy = search.history.trial(6)
        assert (copy.parent, copy.start, copy.budget, copy.status) == (0, 10, 10, "running")
        assert [trial.number for trial in search.running] == [0, 4, 5, 6]
        assert search.history.trial(3).reason == "copies trial 0"
        assert search.report(3, 10, -5.0) == "stop"
        history = search.history
    told = json.loads(path.read_bytes().splitlines()[-1])
    wanted = {"trial": 6, "parent": 0, "start": 10, "configuration": copy.configuration}
    assert told == {"event": "result", "trial": 3, "budget": 10, "value": 3.0, "status": "stopped", "copy": wanted}
    with Study(spec, path) as search:
        assert search.history == history


def test_the_budgets_of_a_copy_are_those_above_its_start(spec, tmp_path):
    with Study(spec, tmp_path / "journal.jsonl") as search:
        for _ in range(2):
            search.next_trial()
        for number in range(2):
            search.report(number, 10, float(number))
        assert search.budgets(0) == (10, 20, 30)
        assert search.budgets(2) == (20, 30)
        assert search.report(2, 10, 7.0) == "continue"
        assert search.history.trial(2).results == ()
        assert search.report(2, 20, -1.0) == "continue"
        assert search.history.steps == 30
        assert search.report(2, 30, -1.0) == "stop"
        assert search.history.trial(2).status == "completed"


def run_trial(spec: StudySpec, path: Path) -> History:
    """A population in turns, to its end, from wherever its journal ends."""
    with Study(spec, path) as search:
        while True:
            for _ in range(spec.scheduler.members - len(search.history.trials)):
                search.next_trial()
            trial = min(search.running, key=lambda one: (one.budget, one.number), default=None)
            if trial is None:
                assert search.stop_reason() is not None
                return search.history
            due = next(budget for budget in search.budgets(trial.number) if budget > trial.budget)
            search.report(trial.number, due, random.Random(trial.number * 100 + due).random())


def test_killed_after_any_line_the_population_goes_on_as_if_it_had_not_been(tmp_path):
    spec = StudySpec(SPACE, RandomSearch(), PBT(("outer.lr",), 10, 60, members=6), "loss", "min")
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    history = run_trial(spec, whole)
    assert sum(trial.parent is not None for trial in history.trials) >= 3
    lines = whole.read_bytes().splitlines(keepends=True)
    for count in range(len(lines)):
        cut.write_bytes(b"".join(lines[:count]))
        assert run_trial(spec, cut) == history
        assert cut.read_bytes() == whole.read_bytes()


def test_as_many_begin_as_there_are_members_and_it_ends_when_nobody_runs(spec, tmp_path):
    """While somebody runs, a copy may begin: nothing has ended, although no member is left to begin."""
    with Study(spec, tmp_path / "journal.jsonl") as search:
        for _ in range(4):
            assert search.next_trial() is not None
        assert search.next_trial() is None
        assert search.stop_reason() is None
        for number in range(4):
            search.report(number, 10, float(-number))
        search.report(0, 20, 5.0)
        while search.running:
            assert search.stop_reason() is None
            assert search.next_trial() is None
            trial = search.running[0]
            search.report(trial.number, next(b for b in search.budgets(trial.number) if b > trial.budget), 0.0)
        assert search.stop_reason() == StopReason(False, "all 4 members have ended")
        assert sum(trial.parent is None for trial in search.history.trials) == 4


def test_with_all_trials_begun_members_go_on_as_they_are(spec, tmp_path):
    with Study(replace(spec, trials=5), tmp_path / "journal.jsonl") as search:
        for _ in range(4):
            search.next_trial()
        decisions = [search.report(number, 10, float(number)) for number in range(4)]
        assert decisions == ["continue", "stop", "continue", "continue"]
        assert search.stop_reason() == StopReason(False, "all 5 trials have begun")


def test_populations_that_cannot_be_are_refused():
    for change, wrong in (
        ({"explored": ()}, "search.method.explored: is empty: name parameters"),
        ({"members": 1}, "search.method.members: 1 has no other member to copy"),
        ({"quantile": 0.6}, "search.method.quantile: 0.6 must be above 0 and at most 0.5"),
        ({"factor": 1.0}, "search.method.factor: 1 must be above 1: set 1.2"),
        ({"resample": 2.0}, "search.method.resample: 2 is no probability: set 0 to 1"),
    ):
        with pytest.raises(ValueError, match=wrong):
            PBT(**{"explored": ("outer.lr",), "interval": 10, "max_budget": 100, **change})
    with pytest.raises(
        ValueError, match=re.escape("search.method.explored: no 'outer.rate' in the space: choose among outer.lr")
    ):
        PBT(("outer.rate",), 10, 100).check_space(SPACE)
    assert [is_explorable(name) for name in ("outer.lr", "outer.momentum", "algorithm.inner_lr")] == [True] * 3
    for name in ("outer.optimizer", "model.width", "algorithm", "tasks.train.ways"):
        space = read_space({name: "choice(a, b)"})
        with pytest.raises(ValueError, match=f"search.method.explored: '{name}': a checkpoint of other settings"):
            PBT((name,), 10, 100).check_space(space)
    with pytest.raises(ValueError, match=r"search.method.interval: 100 steps are the whole budget"):
        PBT(("outer.lr",), 100, 100).check_space(SPACE)
    with pytest.raises(ValueError, match=re.escape("search.method.explored: no 'outer.rate' in the space")):
        StudySpec(SPACE, RandomSearch(), PBT(("outer.rate",), 10, 100), "loss", "min")
    with pytest.raises(ValueError, match=re.escape("search.trials: 8 leave a population of 8 none to copy with: set")):
        StudySpec(SPACE, RandomSearch(), SCHEDULER, "loss", "min", trials=8)
