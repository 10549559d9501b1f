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
from tune.searchers.kde import fitted
from tune.searchers.observations import comparable
from tune.searchers.random_search import Random
from tune.searchers.tpe import TPE
from tune.searchers.warm_start import Warm, agreement
from tune.space.search_space import read_space
from tune.study import Plan
from tune.transfer.prior_studies import Experience, Observation, Source, read_experience, source_of

RATE = read_space({"rate": "uniform(0, 1)"})
BOTH = read_space({"rate": "uniform(0, 1)", "width": "int(8, 64)"})


def source(best: float, weight: float = 1.0, count: int = 40, name: str = "earlier") -> Source:
    """A search over rates whose loss was the distance from `best`."""
    ranked = sorted((i / count for i in range(count)), key=lambda rate: abs(rate - best))
    return Source(name, weight, tuple(Observation({"rate": rate}, 1.0, i / count) for i, rate in enumerate(ranked)))


def searched(best: float, count: int) -> History:
    """Trials all over, whose loss is the distance from `best`."""
    history = History()
    for number in range(count):
        rate = (0.1 + 0.618034 * number) % 1
        history = history.began(Trial(number, {"rate": rate})).reported(number, 9, abs(rate - best))
        history = history.ended(number, "completed")
    return history


def heeding(searcher: Warm, number: int, count: int = 20) -> list[int]:
    """The first seeds with which a trial knows of the experience."""
    return [seed for seed in range(10 * count) if searcher.heeds(seed, number)][:count]


def rates(searcher: Warm, history: History, count: int = 20) -> list[float]:
    number = len(history.trials)
    return [searcher.suggest(RATE, history, number, seed)["rate"] for seed in heeding(searcher, number, count)]


def test_it_begins_with_the_best_of_each_source_the_most_alike_first():
    known = Experience((source(0.8, 0.9), source(0.2, 0.6), source(0.5, 0.01)))
    searcher = Warm(BOHB(), known)
    begun = [number for number in range(4) if searcher.heeds(3, number)]
    assert [searcher.suggest(RATE, History(), number, 3)["rate"] for number in begun] == [0.8, 0.2]
    assert searcher.first_configurations(RATE) == [{"rate": 0.8}, {"rate": 0.2}], "what is hardly alike is left out"
    assert Warm(BOHB(), known, firsts=1).first_configurations(RATE) == [{"rate": 0.8}]


def test_what_two_sources_found_is_tried_once():
    assert len(Warm(BOHB(), Experience((source(0.8), source(0.8)))).first_configurations(RATE)) == 1


def test_what_a_source_lacks_is_drawn_from_the_prior():
    searcher = Warm(BOHB(), Experience((source(0.8),)))
    found = [searcher.suggest(BOTH, History(), 0, seed) for seed in heeding(searcher, 0, 30)]
    assert {one["rate"] for one in found} == {0.8} and len({one["width"] for one in found}) > 15
    assert all(BOTH.contains(one) for one in found)


def test_one_trial_of_each_pair_heeds_experience_in_any_bracket():
    searcher = Warm(BOHB(), Experience())
    heeded = [searcher.heeds(7, number) for number in range(600)]
    assert all(heeded[i] != heeded[i + 1] for i in range(0, 600, 2))
    for brackets in (2, 3, 4):
        for bracket in range(brackets):
            assert 0.4 < np.mean(heeded[bracket::brackets]) < 0.6


@pytest.mark.parametrize("searcher", [Random(), TPE(), Evolution(), BOHB()], ids=lambda one: type(one).__name__)
def test_every_other_trial_is_the_searchers_own_however_sure_experience_is(searcher):
    warm, heeded = Warm(searcher, Experience((source(0.8), source(0.2)))), 0
    for number in range(20):
        history, alone = searched(0.5, number), searcher.suggest(RATE, searched(0.5, number), number, 1)
        if warm.heeds(1, number):
            heeded += warm.suggest(RATE, history, number, 1) != alone
        else:
            assert warm.suggest(RATE, history, number, 1) == alone
    assert heeded >= 2


def test_a_journal_tells_both_searchers_and_experience_by_its_digest():
    """Equal experience, equal header; the inner searcher by name, and nothing that grows with what is known."""
    known = Experience((source(0.8),))
    header = _header(Warm(BOHB(least=9), known))
    assert header["name"] == "warm" and header["searcher"] == {"name": "bohb", **dataclasses.asdict(BOHB(least=9))}
    assert len(header["experience"]) == 64 and len(json.dumps(header)) < 400
    assert _header(Warm(BOHB(least=9), read_experience(known.plain()))) == header
    assert _header(Warm(BOHB(least=9), Experience((source(0.8, 0.9),)))) != header
    assert _header(Warm(TPE(), known))["searcher"]["name"] == "tpe"


def _header(searcher: Searcher) -> dict[str, Any]:
    found: dict[str, Any] = Plan(RATE, searcher, SCHEDULE, "validation/loss", "min").header()["searcher"]
    return found


@pytest.mark.parametrize("searcher", [Random(), TPE(), Evolution(), BOHB()], ids=lambda one: type(one).__name__)
def test_without_experience_it_is_the_other_searcher(searcher):
    for number in (0, 12, 40):
        history = searched(0.3, number)
        assert Warm(searcher, Experience()).suggest(RATE, history, number, 1) == searcher.suggest(
            RATE, history, number, 1
        )


def test_a_searcher_without_observations_goes_on_alone_after_the_first_ones():
    history = searched(0.3, 25)
    for searcher in (Random(), TPE(), Evolution()):
        warm = Warm(searcher, Experience((source(0.8),)))
        for number in (24, 25):
            assert warm.suggest(RATE, history, number, 1) == searcher.suggest(RATE, history, number, 1)


def test_the_model_suggests_near_what_was_good_before_anything_is_seen():
    found = rates(Warm(BOHB(random=0, startup=10), Experience((source(0.8),))), searched(0.8, 1))
    assert sum(abs(rate - 0.8) < 0.15 for rate in found) >= 16
    alone = rates(Warm(BOHB(random=0, startup=10), Experience()), searched(0.8, 1))
    assert sum(abs(rate - 0.8) < 0.15 for rate in alone) < 12


def test_the_random_share_stays_random():
    searcher, history = Warm(BOHB(random=1.0), Experience((source(0.8),))), searched(0.8, 4)
    assert searcher.suggest(RATE, history, 4, 0) == RATE.sample(0, 4)


def test_a_source_that_ranks_wrongly_loses_its_weight_and_one_that_ranks_rightly_keeps_more():
    right, wrong, other = source(0.2), source(0.9), source(0.5)
    searcher = Warm(BOHB(), Experience((right, wrong, other)))
    before = searcher.weights(RATE, History())
    assert before == [1.0, 1.0, 1.0]
    after = searcher.weights(RATE, searched(0.2, 6))
    assert after[0] > after[2] > after[1] and after[0] > 2 * after[1]


def test_a_source_that_turns_everything_around_is_given_up_soon():
    searcher = Warm(BOHB(random=0, startup=10), Experience((source(0.95),)), trust=5.0)
    assert searcher.weights(RATE, searched(0.05, 8)) == [0.0]
    assert not searcher.advice(RATE, searched(0.05, 8)).good


def test_likeness_is_what_a_source_weighs_at_first():
    assert Warm(BOHB(), Experience((source(0.2, 0.7),))).weights(RATE, History()) == [0.7]


def test_the_past_fades_as_own_results_come_in():
    searcher = Warm(BOHB(), Experience((source(0.2),)))
    found = [searcher.weights(RATE, searched(0.2, count))[0] for count in (0, 5, 20, 1000)]
    assert found == sorted(found, reverse=True) and found[1] > found[2] > found[3] == 0.0


def test_what_broke_in_the_present_search_speaks_against_who_praised_it():
    history = searched(0.2, 4)
    for number in range(4, 10):
        history = history.began(Trial(number, {"rate": 0.9})).ended(number, "failed")
    praised, spared = Warm(BOHB(), Experience((source(0.9), source(0.2)))).weights(RATE, history)
    assert spared > 2 * praised


def test_few_observations_make_no_model_but_a_beginning():
    searcher = Warm(BOHB(), Experience((source(0.8, count=3),)))
    assert searcher.weights(RATE, History()) == [0.0] and len(searcher.first_configurations(RATE)) == 1


def test_agreement_is_kendalls():
    """Four trials, six pairs, one of them told wrongly: (5 - 1) / 6."""
    promise, losses = np.array([4.0, 2.0, 3.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0])
    signs = np.sign(losses[None, :] - losses[:, None])
    assert agreement(promise, signs) == pytest.approx(4 / 6)
    assert agreement(-losses, signs) == 1.0 and agreement(losses, signs) == -1.0
    assert agreement(promise, 0 * signs) == 0.0


def test_an_alike_search_makes_early_trials_better_that_heed_it():
    """Of twenty each, over the space with conditions and with failures: the median of their losses."""
    earlier = told(BOHB(least=9), seed=50, trials=40)
    known = source_of("earlier", 1.0, earlier, 9, SPACE, {})
    assert known is not None and len(known.observations) == len(comparable(earlier))
    cold, warm = BOHB(least=9), Warm(BOHB(least=9), Experience((known,)))
    heeding_trials = [(seed, number) for seed in range(3) for number in range(20) if warm.heeds(seed, number)]
    assert len(heeding_trials) == 30
    middles = []
    for searcher in (cold, warm):
        histories = [told(searcher, seed, 20, SCHEDULE) for seed in range(3)]
        found = [histories[seed].trial(number).configuration for seed, number in heeding_trials]
        middles.append(float(np.median([loss(dict(configuration), 9) for configuration in found])))
    assert middles[1] < 0.7 * middles[0]


def test_weights_are_shares_of_a_density_and_of_its_draws():
    """log l = log((1 + Σ wᵢ Kᵢ) / (1 + Σ wᵢ)): twice a half is one, in value and in draws."""
    one, halves = (fitted(RATE, [{"rate": 0.2}] * count, [1 / count] * count) for count in (1, 2))
    x = np.linspace(0, 1, 11)[:, None]
    assert np.allclose(one.log(x), halves.log(x))
    assert not np.allclose(one.log(x), fitted(RATE, [{"rate": 0.2}] * 2)._replace(widths=one.widths).log(x))
    faint = fitted(RATE, [{"rate": 0.2}, {"rate": 0.9}], [0.05, 5.0])._replace(widths=np.array([0.01]))
    u = np.array([RATE.sample(0, number)["rate"] for number in range(900)]).reshape(300, 3)
    drawn = faint.draw(u)[:, 0]
    assert np.mean(np.abs(drawn - 0.2) < 0.05) < 0.1 and np.mean(np.abs(drawn - 0.9) < 0.05) > 0.75
