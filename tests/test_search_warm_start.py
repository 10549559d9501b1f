"""A search with experience: what it begins with, whom it trusts, and for how long."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from tests.conformance_searchers import SCHEDULE, SPACE, loss, told
from tune.history.trials import History, Trial
from tune.searchers import Searcher
from tune.searchers.bohb import BOHB
from tune.searchers.evolution import Evolution
from tune.searchers.observations import trials_with_outcome
from tune.searchers.random_search import RandomSearch
from tune.searchers.tpe import TPE
from tune.searchers.warm_start import WarmStart, predict_quantiles, rank_correlation
from tune.space.search_space import read_space
from tune.study import StudySpec
from tune.transfer.prior_studies import Observation, PriorStudies, PriorStudy, read_prior_studies, summarize_study

RATE = read_space({"rate": "uniform(0, 1)"})
BOTH = read_space({"rate": "uniform(0, 1)", "width": "int(8, 64)"})


def source(best: float, weight: float = 1.0, count: int = 40, name: str = "earlier") -> PriorStudy:
    """A search over rates whose loss was the distance from `best`."""
    ranked = sorted((i / count for i in range(count)), key=lambda rate: abs(rate - best))
    return PriorStudy(name, weight, tuple(Observation({"rate": rate}, 1.0, i / count) for i, rate in enumerate(ranked)))


def searched(best: float, count: int) -> History:
    """Trials all over, whose loss is the distance from `best`."""
    history = History()
    for number in range(count):
        rate = (0.1 + 0.618034 * number) % 1
        history = history.with_trial(Trial(number, {"rate": rate})).with_result(number, 9, abs(rate - best))
        history = history.with_end(number, "completed")
    return history


def heeding(searcher: WarmStart, number: int, count: int = 20) -> list[int]:
    """The first seeds with which a trial knows of the experience."""
    return [seed for seed in range(10 * count) if searcher.uses_prior_studies(seed, number)][:count]


def rates(searcher: WarmStart, history: History, count: int = 20) -> list[float]:
    number = len(history.trials)
    return [searcher.suggest(RATE, history, number, seed)["rate"] for seed in heeding(searcher, number, count)]


def test_it_begins_with_the_best_of_each_source_the_most_alike_first():
    known = PriorStudies((source(0.8, 0.9), source(0.2, 0.6), source(0.5, 0.01)))
    searcher = WarmStart(BOHB(), known)
    begun = [number for number in range(4) if searcher.uses_prior_studies(3, number)]
    assert [searcher.suggest(RATE, History(), number, 3)["rate"] for number in begun] == [0.8, 0.2]
    assert searcher.initial_configurations() == [{"rate": 0.8}, {"rate": 0.2}], "what is hardly alike is left out"
    assert WarmStart(BOHB(), known, initial=1).initial_configurations() == [{"rate": 0.8}]


def test_what_two_sources_found_is_tried_once():
    assert len(WarmStart(BOHB(), PriorStudies((source(0.8), source(0.8)))).initial_configurations()) == 1


def test_what_a_source_lacks_is_drawn_from_the_prior():
    searcher = WarmStart(BOHB(), PriorStudies((source(0.8),)))
    found = [searcher.suggest(BOTH, History(), 0, seed) for seed in heeding(searcher, 0, 30)]
    assert {one["rate"] for one in found} == {0.8} and len({one["width"] for one in found}) > 15
    assert all(BOTH.contains(one) for one in found)


def test_one_trial_of_each_pair_heeds_experience_in_any_bracket():
    searcher = WarmStart(BOHB(), PriorStudies())
    heeded = [searcher.uses_prior_studies(7, number) for number in range(600)]
    assert all(heeded[i] != heeded[i + 1] for i in range(0, 600, 2))
    for brackets in (2, 3, 4):
        for bracket in range(brackets):
            assert 0.4 < np.mean(heeded[bracket::brackets]) < 0.6


@pytest.mark.parametrize("searcher", [RandomSearch(), TPE(), Evolution(), BOHB()], ids=lambda one: type(one).__name__)
def test_every_other_trial_is_the_searchers_own_however_sure_experience_is(searcher):
    warm, heeded = WarmStart(searcher, PriorStudies((source(0.8), source(0.2)))), 0
    for number in range(20):
        history, alone = searched(0.5, number), searcher.suggest(RATE, searched(0.5, number), number, 1)
        if warm.uses_prior_studies(1, number):
            heeded += warm.suggest(RATE, history, number, 1) != alone
        else:
            assert warm.suggest(RATE, history, number, 1) == alone
    assert heeded >= 2


def test_a_journal_tells_both_searchers_and_experience_by_its_digest():
    """Equal experience, equal header; the inner searcher by name, and nothing that grows with what is known."""
    known = PriorStudies((source(0.8),))
    header = _header(WarmStart(BOHB(least=9), known))
    assert header["name"] == "warm" and header["searcher"] == {"name": "bohb", **dataclasses.asdict(BOHB(least=9))}
    assert len(header["experience"]) == 64 and len(json.dumps(header)) < 400
    assert _header(WarmStart(BOHB(least=9), read_prior_studies(known.to_plain()))) == header
    assert _header(WarmStart(BOHB(least=9), PriorStudies((source(0.8, 0.9),)))) != header
    assert _header(WarmStart(TPE(), known))["searcher"]["name"] == "tpe"


def _header(searcher: Searcher) -> dict[str, Any]:
    found: dict[str, Any] = StudySpec(RATE, searcher, SCHEDULE, "validation/loss", "min").journal_header()["searcher"]
    return found


@pytest.mark.parametrize("searcher", [RandomSearch(), TPE(), Evolution(), BOHB()], ids=lambda one: type(one).__name__)
def test_without_experience_it_is_the_other_searcher(searcher):
    for number in (0, 12, 40):
        history = searched(0.3, number)
        assert WarmStart(searcher, PriorStudies()).suggest(RATE, history, number, 1) == searcher.suggest(
            RATE, history, number, 1
        )


def test_a_searcher_without_observations_goes_on_alone_after_the_first_ones():
    history = searched(0.3, 25)
    for searcher in (RandomSearch(), TPE(), Evolution()):
        warm = WarmStart(searcher, PriorStudies((source(0.8),)))
        for number in (24, 25):
            assert warm.suggest(RATE, history, number, 1) == searcher.suggest(RATE, history, number, 1)


def test_the_model_suggests_near_what_was_good_before_anything_is_seen():
    found = rates(WarmStart(BOHB(random=0, startup=10), PriorStudies((source(0.8),))), searched(0.8, 1))
    assert sum(abs(rate - 0.8) < 0.15 for rate in found) >= 16
    alone = rates(WarmStart(BOHB(random=0, startup=10), PriorStudies()), searched(0.8, 1))
    assert sum(abs(rate - 0.8) < 0.15 for rate in alone) < 12


def test_the_random_share_stays_random():
    searcher, history = WarmStart(BOHB(random=1.0), PriorStudies((source(0.8),))), searched(0.8, 4)
    assert searcher.suggest(RATE, history, 4, 0) == RATE.sample(0, 4)


def test_a_source_that_ranks_wrongly_loses_its_weight_and_one_that_ranks_rightly_keeps_more():
    right, wrong, other = source(0.2), source(0.9), source(0.5)
    searcher = WarmStart(BOHB(), PriorStudies((right, wrong, other)))
    before = searcher.weights(RATE, History())
    assert before == [1.0, 1.0, 1.0]
    after = searcher.weights(RATE, searched(0.2, 6))
    assert after[0] > after[2] > after[1] and after[0] > 2 * after[1]


def test_a_source_that_turns_everything_around_is_given_up_soon():
    searcher = WarmStart(BOHB(random=0, startup=10), PriorStudies((source(0.95),)), trust=5.0)
    assert searcher.weights(RATE, searched(0.05, 8)) == [0.0]
    assert not searcher.prior_observations(RATE, searched(0.05, 8), 0)


def test_likeness_is_what_a_source_weighs_at_first():
    assert WarmStart(BOHB(), PriorStudies((source(0.2, 0.7),))).weights(RATE, History()) == [0.7]


def test_the_past_fades_as_own_results_come_in():
    searcher = WarmStart(BOHB(), PriorStudies((source(0.2),)))
    found = [searcher.weights(RATE, searched(0.2, count))[0] for count in (0, 5, 20, 1000)]
    assert found == sorted(found, reverse=True) and found[1] > found[2] > found[3] == 0.0


def test_what_broke_in_the_present_search_speaks_against_who_praised_it():
    history = searched(0.2, 4)
    for number in range(4, 10):
        history = history.with_trial(Trial(number, {"rate": 0.9})).with_end(number, "failed")
    praised, spared = WarmStart(BOHB(), PriorStudies((source(0.9), source(0.2)))).weights(RATE, history)
    assert spared > 2 * praised


def test_few_observations_make_no_model_but_a_beginning():
    searcher = WarmStart(BOHB(), PriorStudies((source(0.8, count=3),)))
    assert searcher.weights(RATE, History()) == [0.0] and len(searcher.initial_configurations()) == 1


def test_rank_correlation_is_kendalls():
    """Four trials, six pairs, one of them told wrongly: (5 - 1) / 6."""
    promise, losses = np.array([4.0, 2.0, 3.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0])
    signs = np.sign(losses[None, :] - losses[:, None])
    assert rank_correlation(promise, signs) == pytest.approx(4 / 6)
    assert rank_correlation(-losses, signs) == 1.0 and rank_correlation(losses, signs) == -1.0
    assert rank_correlation(promise, 0 * signs) == 0.0


def test_an_alike_search_makes_early_trials_better_that_heed_it():
    """Of twenty each, over the space with conditions and with failures: the median of their losses."""
    earlier = told(BOHB(least=9), seed=50, trials=40)
    known = summarize_study("earlier", 1.0, earlier, 9, SPACE, {})
    assert known is not None and len(known.observations) == len(trials_with_outcome(earlier))
    cold, warm = BOHB(least=9), WarmStart(BOHB(least=9), PriorStudies((known,)))
    heeding_trials = [
        (seed, number) for seed in range(3) for number in range(20) if warm.uses_prior_studies(seed, number)
    ]
    assert len(heeding_trials) == 30
    middles = []
    for searcher in (cold, warm):
        histories = [told(searcher, seed, 20, SCHEDULE) for seed in range(3)]
        found = [histories[seed].trial(number).configuration for seed, number in heeding_trials]
        middles.append(float(np.median([loss(dict(configuration), 9) for configuration in found])))
    assert middles[1] < 0.7 * middles[0]


def test_of_a_prior_study_a_share_is_used_as_large_as_its_weight_evenly_by_rank():
    """The best is always among them, and what it lacks is the same in every suggestion of one seed."""
    searcher = WarmStart(BOHB(), PriorStudies((source(0.8, 0.25), source(0.2, 1.0))))
    quarter = searcher.prior_observations(BOTH, History(), 0)[:10]
    assert len(searcher.prior_observations(BOTH, History(), 0)) == 50
    assert [quantile for _, quantile in quarter] == pytest.approx([i * 39 / 9 / 40 for i in range(10)], abs=0.02)
    assert quarter[0][0]["rate"] == 0.8 and all(BOTH.contains(configuration) for configuration, _ in quarter)
    assert searcher.prior_observations(BOTH, History(), 0)[:10] == quarter
    assert searcher.prior_observations(BOTH, History(), 1)[:10] != quarter


def test_quantiles_are_predicted_from_what_two_configurations_share():
    """At what was observed, between two of them, and of options beside numbers; near each other at both ends."""
    space = read_space({"rate": "uniform(0, 1)", "kind": "choice(a, b)"})
    known = [({"rate": 0.1, "kind": "a"}, 0.0), ({"rate": 0.9, "kind": "a"}, 0.5), ({"kind": "b"}, 1.0)]
    study = PriorStudy("earlier", 1.0, tuple(Observation(x, 1.0, quantile) for x, quantile in known))
    asked = [{"rate": 0.1, "kind": "a"}, {"rate": 0.5, "kind": "a"}, {"rate": 0.3, "kind": "b"}, {"rate": 0.9}]
    low, middle, other, open_kind = predict_quantiles(space, study, asked)
    assert low < 0.05 and middle == pytest.approx(0.25, abs=0.05) and other > 0.9 and 0.5 < open_kind < 1
