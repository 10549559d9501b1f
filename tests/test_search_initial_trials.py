"""What a search is told to begin with: the base's own values, or others."""

import pytest
import yaml

from metatrain.config.load import as_plain
from tests.conformance_searchers import SPACE, spec_of
from tests.searches import tiny_search
from tune.config.initial_trials import read_initial_trial
from tune.searchers.bohb import BOHB
from tune.space.search_space import read_space
from tune.study import Study

NETWORKS = read_space(
    yaml.safe_load("""
        model: [{name: conv4}, {name: mlp}, {name: mlp, width: 64}]
        model.depth: {from: 'int(1, 4)', when: {model: {name: mlp}}}
        model.kernel: {from: 'choice(3, 5)', when: {model: {name: conv4}}}
    """)
)
BASE = {"model": {"name": "mlp", "width": 40, "depth": 2}}


@pytest.mark.parametrize(
    ("given", "configuration"),
    [
        ({}, {"model": {"name": "mlp"}, "model.depth": 2}),
        ({"model.depth": 3}, {"model": {"name": "mlp"}, "model.depth": 3}),
        ({"model": {"name": "conv4"}, "model.kernel": 5}, {"model": {"name": "conv4"}, "model.kernel": 5}),
    ],
    ids=str,
)
def test_what_is_not_given_is_the_configurations_own(given, configuration):
    assert read_initial_trial(given, NETWORKS, BASE) == configuration


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model.dept": 3}, "no parameter 'model.dept' in this space (did you mean model.depth?)"),
        ({"model.depth": 5}, "model.depth: 5 is not of int(1, 4): give one that is"),
        ({"model.kernel": 3}, "model.kernel is inactive with the other values"),
        ({"model": {"name": "conv4"}}, "model.kernel has no value in the configuration: give one"),
        ({"model": {"name": "mlp", "width": 64}}, "model.depth has no value in the configuration: give one"),
    ],
    ids=str,
)
def test_what_is_none_of_the_space_is_refused(given, says):
    with pytest.raises(ValueError) as refused:
        read_initial_trial(given, NETWORKS, BASE)
    assert str(refused.value).startswith("search.first: ") and says in str(refused.value)


def test_a_base_outside_of_its_space_is_told_to_whoever_wants_to_begin_with_it():
    space = {"outer.lr": "loguniform(0.01, 0.1)"}
    with pytest.raises(ValueError, match=r"outer\.lr is 0\.001 in the configuration, not of loguniform"):
        tiny_search("search.first=base", space=space)
    assert tiny_search(space=space).study_spec().initial_trials == ()


def test_values_that_do_not_go_together_are_refused():
    space = {"outer.momentum": "choice(0.0, 0.9)", "outer.optimizer": "choice(adam, sgd)"}
    with pytest.raises(ValueError, match=r"search\.first: outer\.momentum"):
        tiny_search("search.first=[{outer.momentum: 0.9}]", space=space)


def test_the_word_base_is_a_configuration_without_values_of_its_own():
    document = tiny_search("search.first=[base, {outer.lr: 0.02}]")
    own = as_plain(document.base)
    first, second = document.study_spec().initial_trials
    assert first == {"algorithm.inner_lr": 0.01, "algorithm.inner_steps": 1, "outer.lr": own["outer"]["lr"]}
    assert second == {**first, "outer.lr": 0.02}
    assert document.trial_config(first) == document.base


def test_a_search_begins_with_them_and_then_suggests_as_one_without(tmp_path):
    first = tuple(SPACE.sample(99, number) for number in range(3))
    begun = []
    for name, given in (("with", first), ("without", ())):
        spec = spec_of(BOHB(), trials=12, initial_trials=given)
        with Study(spec, tmp_path / name) as search:
            begun.append([dict(search.next_trial().configuration) for _ in range(12 if given else 9)])
    assert begun[0][:3] == list(map(dict, first))
    assert begun[0][3:] == begun[1]


def test_they_are_part_of_what_a_search_is(tmp_path):
    first = (SPACE.sample(99, 0),)
    with Study(spec_of(BOHB(), trials=12, initial_trials=first), tmp_path / "journal.jsonl"):
        pass
    with pytest.raises(ValueError, match="first"), Study(spec_of(BOHB(), trials=12), tmp_path / "journal.jsonl"):
        pass
