"""The search: what it says to results that come twice, late, or never, and when it ends."""

import math
import re

import pytest

from tests.conformance_searchers import SPACE, searched, spec_of
from tune.schedulers.asha import ASHA, FullBudget
from tune.searchers.random_search import RandomSearch
from tune.study import StopReason, Study, StudySpec


@pytest.fixture
def search(tmp_path):
    with Study(spec_of(RandomSearch(), trials=5), tmp_path / "journal.jsonl") as search:
        yield search


def test_a_trial_goes_from_rung_to_rung_and_is_completed(search):
    trial = search.next_trial()
    assert (trial.number, trial.status) == (0, "running")
    assert search.running == (trial,)
    assert [search.report(0, budget, 1 / budget) for budget in (1, 3, 9)] == ["continue", "continue", "stop"]
    assert search.history.trial(0).status == "completed"
    assert search.running == ()
    assert search.history.best().number == 0


def test_a_result_said_twice_or_late_is_answered_as_before_and_changes_nothing(search):
    for _ in range(2):
        search.next_trial()
    search.report(0, 1, 0.5)
    assert search.report(1, 1, 0.9) == "stop"
    before, written = search.history, search._journal.path.read_bytes()
    assert search.report(0, 1, -7.0) == "continue"
    assert search.report(1, 1, 0.1) == "stop"
    assert search.report(1, 3, math.nan) == "stop"
    search.fail(1, "late")
    assert search.history == before
    assert search._journal.path.read_bytes() == written


def test_between_rungs_nothing_is_kept_and_no_rung_is_passed_in_silence(search):
    search.next_trial()
    search.report(0, 1, 0.5)
    assert search.report(0, 2, 0.4) == "continue"
    assert search.history.trial(0).results == ((1, 0.5),)
    with pytest.raises(ValueError, match="trial 0: 4 steps are past the rung at 3: report loss there"):
        search.report(0, 4, 0.3)
    with pytest.raises(ValueError, match="trial 3: there are 1, from 0 on: name one of them"):
        search.report(3, 1, 0.3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_ends_the_trial_wherever_it_comes(search, value):
    search.next_trial()
    assert search.report(0, 2, value) == "stop"
    assert search.history.trial(0).status == "nan"
    assert search.history.best() is None


def test_failures_in_a_row_end_the_search_and_say_why(tmp_path):
    spec = StudySpec(SPACE, RandomSearch(), FullBudget(9), "loss", "min", trials=50, failures=3)
    with Study(spec, tmp_path / "journal.jsonl") as search:
        for number in range(2):
            search.next_trial()
            search.fail(number, "out of memory")
        search.next_trial()
        search.report(2, 9, 1.0)
        for number in (3, 4, 5):
            assert search.stop_reason() is None
            search.next_trial()
            search.fail(number, f"no GPU {number}")
        reason = "3 trials failed one after the other, trial 5 last: no GPU 5"
        assert search.stop_reason() == StopReason(True, reason)
        assert search.next_trial() is None
    with Study(spec, tmp_path / "journal.jsonl") as search:
        assert search.stop_reason() == StopReason(True, reason)


def test_a_space_full_of_what_diverges_or_clashes_ends_no_search_that_has_results(tmp_path):
    spec = StudySpec(SPACE, RandomSearch(), FullBudget(9), "loss", "min", trials=50, failures=3)
    with Study(spec, tmp_path / "journal.jsonl") as search:
        search.report(search.next_trial().number, 9, 1.0)
        for status in ("unfit", "nan", "nan", "unfit", "nan"):
            search.fail(search.next_trial().number, "no number", status)
        assert search.stop_reason() is None
        for _ in range(3):
            search.fail(search.next_trial().number, "no GPU")
        assert search.stop_reason().failed
    with Study(spec, tmp_path / "other.jsonl") as search:
        for status in ("unfit", "nan", "unfit"):
            assert search.stop_reason() is None
            search.fail(search.next_trial().number, "no number", status)
        assert search.stop_reason().failed, "nothing ever had a result"


def test_who_broke_later_is_the_best_only_where_everybody_did(tmp_path):
    spec = StudySpec(SPACE, RandomSearch(), ASHA(1, 9), "loss", "min", trials=4)
    with Study(spec, tmp_path / "journal.jsonl") as search:
        for _ in range(2):
            search.next_trial()
        search.report(0, 1, 1.0)
        search.report(0, 3, 0.5)
        search.fail(0, "no number", "nan")
        assert search.history.best().number == 0
        search.report(1, 1, 2.0)
        assert [trial.number for trial in search.history.front()] == [1]


def test_a_search_ends_with_its_trials_and_may_be_given_more(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert len(searched(spec_of(RandomSearch(), trials=5), path)) == 5
    with Study(spec_of(RandomSearch(), trials=5), path) as search:
        assert search.stop_reason() == StopReason(False, "all 5 trials have begun")
    assert len(searched(spec_of(RandomSearch(), trials=9), path)) == 9


@pytest.mark.parametrize(("mode", "wanted"), [("min", 1), ("max", 0)])
def test_the_best_is_of_those_that_went_furthest(tmp_path, mode, wanted):
    spec = StudySpec(SPACE, RandomSearch(), ASHA(1, 9), "loss", mode, trials=4)
    sign = 1 if mode == "min" else -1
    with Study(spec, tmp_path / "journal.jsonl") as search:
        for _ in range(3):
            search.next_trial()
        for budget in (1, 3, 9):
            search.report(0, budget, 5.0)
        for budget in (1, 3, 9):
            search.report(1, budget, 5.0 - sign if mode == "min" else 5.0)
        search.report(2, 1, 5.0 - 4 * sign)
        assert search.history.best().number == wanted


def test_a_plan_without_an_end_goes_on(tmp_path):
    """Whoever runs it has one of his own, by the clock."""
    with Study(StudySpec(SPACE, RandomSearch(), FullBudget(9), "loss", "min"), tmp_path / "journal.jsonl") as search:
        for number in range(30):
            assert search.stop_reason() is None
            search.next_trial()
            search.report(number, 9, 1.0)


def test_plans_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=re.escape("search.failures: 0 is not a positive number")):
        StudySpec(SPACE, RandomSearch(), FullBudget(9), "loss", "min", trials=1, failures=0)
    with pytest.raises(ValueError, match=re.escape("search.mode: 'least': set min or max")):
        StudySpec(SPACE, RandomSearch(), FullBudget(9), "loss", "least", trials=1)
