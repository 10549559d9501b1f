"""The conformance suite of searchers: a new one joins `ROWS`, and every law holds for it."""

from pathlib import Path

import pytest

from tests import conformance_searchers as conformance
from tests.conformance_searchers import Row
from tune.config.methods import METHODS
from tune.history.trials import History, Trial
from tune.searchers.bohb import BOHB
from tune.searchers.evolution import Evolution
from tune.searchers.random_search import RandomSearch
from tune.searchers.tpe import TPE
from tune.searchers.warm_start import WarmStart
from tune.transfer.prior_studies import Observation, PriorStudies, PriorStudy


def _experience() -> PriorStudies:
    """Of another search, over a space that lacked a parameter: what it tells is the same whoever asks."""
    drawn = [dict(conformance.SPACE.sample(9, number)) for number in range(30)]
    ranked = sorted(drawn, key=lambda configuration: conformance.loss(configuration, 9))
    kept = [{name: x[name] for name in x if name != "algorithm.inner_lr"} for x in ranked]
    observations = tuple(Observation(configuration, 1.0, i / 29) for i, configuration in enumerate(kept))
    return PriorStudies((PriorStudy("earlier", 0.8, observations),))


ROWS = [
    Row("random", RandomSearch(), learns=False),
    Row("tpe", TPE(startup=5)),
    Row("bohb", BOHB(least=9)),
    Row("evolution", Evolution(population=10, tournament=4)),
    Row("random, warm", WarmStart(RandomSearch(), _experience()), learns=False),
    Row("bohb, warm", WarmStart(BOHB(least=9), _experience())),
]


def test_every_searcher_is_here():
    tried = {type(row.searcher) for row in ROWS} - {WarmStart}
    assert tried == {method.searcher for method in METHODS.values()}


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def test_every_suggestion_is_of_the_space(row):
    conformance.check_within(row)


def test_the_narrowest_and_the_widest_domains(row):
    conformance.check_narrow(row)


def test_a_suggestion_is_a_pure_function(row):
    conformance.check_pure(row)


def test_seeds_differ(row):
    conformance.check_seeds(row)


def test_what_is_suggested_in_parallel_differs(row):
    conformance.check_parallel(row)


def test_it_goes_on_where_every_trial_fails(row):
    conformance.check_failures_only(row)


def test_what_fails_is_suggested_less(row):
    conformance.check_failures_repel(row)


def test_it_learns(row):
    conformance.check_learns(row)


def test_to_maximise_is_to_minimise_the_negative(row):
    conformance.check_mode(row)


def test_late_and_repeated_results_change_nothing(row):
    conformance.check_late_and_repeated(row)


def test_killed_after_any_line_it_goes_on_as_if_it_had_not_been(row, tmp_path: Path):
    conformance.check_resume(row, tmp_path)


def whole(number: int, rate: float, budget: int, value: float, history: History) -> History:
    configuration = {"rate": rate}
    history = history.with_trial(Trial(number, configuration)).with_result(number, budget, value)
    return history.with_end(number, "completed" if budget == 9 else "stopped")


RATE = conformance.read_space({"rate": "uniform(0, 1)"})


def test_tpe_leaves_small_budgets_out():
    """They say that rates near 1 are best, which the whole budget denies."""
    told, alone = History(), History()
    for number in range(12):
        alone = whole(number, number / 12, 9, number / 12, alone)
        told = whole(2 * number, number / 12, 9, number / 12, told)
        told = whole(2 * number + 1, 1 - number / 100, 1, -100.0, told)
    assert TPE().suggest(RATE, told, 24, 3) == TPE().suggest(RATE, alone, 24, 3)


def test_bohb_models_the_highest_rung_that_has_enough():
    low = History()
    for number in range(10):
        low = whole(number, number / 10, 1, -number / 10, low)
    low_rates = [BOHB(random=0, least=5).suggest(RATE, low, 10, seed)["rate"] for seed in range(20)]
    assert sum(rate > 0.6 for rate in low_rates) >= 16
    high = low
    for number in range(10, 12):
        high = whole(number, (number - 10) / 10, 3, number, high)
    assert [BOHB(random=0, least=5).suggest(RATE, high, 10, seed)["rate"] for seed in range(20)] == low_rates
    for number in range(12, 22):
        high = whole(number, (number - 12) / 10, 3, number, high)
    assert sum(BOHB(random=0, least=5).suggest(RATE, high, 22, seed)["rate"] < 0.4 for seed in range(20)) >= 16


@pytest.mark.parametrize("searcher", [TPE(), BOHB(random=0)], ids=["tpe", "bohb"])
def test_what_is_awaited_is_not_suggested_again(searcher):
    """Rates near 0.5 are best; once eight of them run, the next ones keep further away."""
    history = History()
    for number in range(30):
        history = whole(number, number / 30, 9, abs(number / 30 - 0.5), history)
    alone = [searcher.suggest(RATE, history, 38, seed)["rate"] for seed in range(40)]
    for number in range(30, 38):
        history = history.with_trial(Trial(number, {"rate": 0.5 + (number - 33.5) / 400}))
    beside = [searcher.suggest(RATE, history, 38, seed)["rate"] for seed in range(40)]
    near, far = [sum(abs(rate - 0.5) for rate in rates) / len(rates) for rates in (alone, beside)]
    assert near < 0.1
    assert far > 1.2 * near


def test_bohb_draws_its_share_from_the_prior():
    history = History()
    for number in range(10):
        history = whole(number, number / 10, 9, number, history)
    for share, expected in ((0.0, 0), (0.5, 100), (1.0, 200)):
        prior = sum(
            BOHB(random=share, least=5).suggest(RATE, history, number, 0) == RATE.sample(0, number)
            for number in range(200)
        )
        assert abs(prior - expected) <= 25


def test_the_oldest_die_in_an_evolution_however_good_they_are():
    history = whole(0, 0.5, 9, -100.0, History())
    for number in range(1, 11):
        history = whole(number, number / 20, 9, 0.0, history)
    parents = {Evolution(10, 10).select_parent(history, 11, seed).number for seed in range(20)}
    assert 0 not in parents
    assert Evolution(11, 11).select_parent(history, 11, 0).number == 0
    assert Evolution(12, 3).select_parent(history, 11, 0) is None


def test_an_evolution_changes_one_parameter_of_the_parent():
    history = conformance.told(Evolution(population=10, tournament=4), trials=40)
    searcher = Evolution(10, 10)
    for number in range(40, 60):
        parent, child = (
            searcher.select_parent(history, number, 0),
            searcher.suggest(conformance.SPACE, history, number, 0),
        )
        shared = parent.configuration.keys() & child.keys()
        assert sum(parent.configuration[name] != child[name] for name in shared) == 1


def test_settings_that_cannot_be_are_refused():
    for make, wrong in (
        (lambda: BOHB(random=1.5), "search.method.random: 1.5 is not a share: set 0 to 1"),
        (lambda: BOHB(candidates=0), "search.method.candidates: 0 is not a positive number"),
        (lambda: TPE(startup=0), "search.method.startup: 0 is not"),
        (lambda: Evolution(5, 6), "search.method.tournament: 6 is above the population, 5: lower it"),
    ):
        with pytest.raises(ValueError, match=wrong):
            make()
