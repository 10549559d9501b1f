"""Spaces: how they are read and refused, and what sampling, mutating and perturbing keep to."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metatrain.config.load import read_config
from tests.conformance_searchers import SPACE
from tune.space.distributions import Categorical, Integer, Real, is_same
from tune.space.search_space import Space, apply_configuration, read_space

UNIT = st.floats(0, 1, exclude_max=True)
WORDS = st.text(min_size=0, max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=2),
    max_leaves=3,
)


@st.composite
def distributions(draw: st.DrawFn):
    kind = draw(st.sampled_from(["real", "int", "choice"]))
    log = draw(st.booleans())
    if kind == "choice":
        options: list = []
        for option in draw(st.lists(PLAIN, min_size=2, max_size=5)):
            if not any(is_same(option, other) for other in options):
                options.append(option)
        return Categorical(tuple(options)) if len(options) > 1 else Categorical(("a", "b"))
    if kind == "int":
        low = draw(st.integers(1 if log else -(10**6), 10**6))
        return Integer(low, low + draw(st.integers(1, 10**6)), log)
    low = draw(st.floats(1e-9, 1e6) if log else st.floats(-1e6, 1e6))
    return Real(low, low + draw(st.floats(1e-3, 1e6)) if not log else low * draw(st.floats(1.001, 1e6)), log)


@settings(deadline=None)
@given(distributions(), UNIT, UNIT, UNIT, st.sampled_from([1.2, 1 / 1.2, 0.5, 3.0]))
def test_every_way_to_a_value_stays_within_its_distribution(distribution, at, u, v, factor):
    value = distribution.value_at(at)
    assert distribution.contains(value)
    mutated = distribution.mutate(value, u, v)
    assert distribution.contains(mutated)
    if not isinstance(distribution, Real):
        assert not is_same(mutated, value)
    perturbed = distribution.perturb(value, factor)
    assert distribution.contains(perturbed)
    assert 0 <= distribution.quantile(value) <= 1


@settings(deadline=None)
@given(distributions(), UNIT)
def test_quantiles_lead_back(distribution, u):
    value = distribution.value_at(u)
    back = distribution.value_at(min(distribution.quantile(value), math.nextafter(1, 0)))
    assert (
        math.isclose(back, value, rel_tol=1e-6, abs_tol=1e-6)
        if isinstance(distribution, Real)
        else is_same(back, value)
    )


@settings(deadline=None)
@given(distributions())
def test_what_is_written_is_read_back(distribution):
    space = read_space({"a.b": str(distribution)})
    assert str(space.parameters[0].distribution) == str(distribution)
    assert type(space.parameters[0].distribution) is type(distribution)
    again = read_space(space.to_plain())
    assert again == space


def test_the_ends_of_domains_are_reached():
    assert {Integer(5, 20).value_at(i / 1000) for i in range(1000)} == set(range(5, 21))
    assert {Integer(1, 8, log=True).value_at(i / 1000) for i in range(1000)} == set(range(1, 9))
    assert Real(1e-3, 1, log=True).value_at(0) == pytest.approx(1e-3, rel=1e-12)
    assert Real(1e-3, 1, log=True).value_at(0.5) == pytest.approx(10**-1.5)
    below = sum(Integer(1, 100, log=True).value_at(i / 1000) <= 10 for i in range(1000))
    assert 500 <= below <= 650
    assert [Categorical(("a", "b", "c")).value_at(i / 3 + 0.01) for i in range(3)] == ["a", "b", "c"]


def test_mutants_are_near_by_and_do_not_pile_up_at_the_ends():
    grid = [(i / 40, j / 40) for i in range(40) for j in range(40)]
    for value in (0.05, 0.5, 0.95):
        mutants = [Real(0, 1).mutate(value, u, v) for u, v in grid]
        assert sum(x in (0.0, 1.0) for x in mutants) == 0
        near = sum(abs(x - value) < 0.2 for x in mutants) / len(mutants)
        assert 0.5 < near < 0.9


def test_what_is_no_value_is_told_apart():
    assert not Integer(1, 5).contains(2.0)
    assert not Integer(1, 5).contains(True)
    assert not Real(0, 1).contains(math.nan)
    assert not Real(0, 1).contains("0.5")
    assert Real(0, 1).contains(1)
    assert not Categorical((0, 2)).contains(False)
    assert Categorical(({"name": "conv4"}, None)).contains({"name": "conv4"})


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_samples_and_mutants_are_of_the_space(seed, number):
    drawn = SPACE.sample(seed, number)
    assert SPACE.contains(drawn)
    assert drawn == SPACE.sample(seed, number)
    mutated = SPACE.mutate(drawn, seed, number)
    assert SPACE.contains(mutated)
    assert sum(mutated[name] != drawn[name] for name in mutated.keys() & drawn.keys()) <= 1


def test_a_parameter_too_many_or_too_few_is_not_of_the_space():
    drawn = next(x for n in range(99) if (x := SPACE.sample(0, n))["model"] == {"name": "conv4"})
    width = {"model.width": 32}
    assert not SPACE.contains({k: v for k, v in drawn.items() if k != "model.width"})
    other = next(x for n in range(99) if (x := SPACE.sample(0, n))["model"] == {"name": "resnet12"})
    assert not SPACE.contains(other | width)
    assert not SPACE.contains(drawn | {"more": 1})


def test_conditions_hold_all_at_once_and_lists_are_any_of():
    space = read_space(
        {
            "c": {"from": "int(1, 3)", "when": {"a": ["x", "y"], "b": 2}},
            "a": "choice(x, y, z)",
            "b": "int(1, 3)",
        }
    )
    assert [parameter.name for parameter in space.parameters] == ["a", "b", "c"]
    for number in range(50):
        drawn = space.sample(0, number)
        assert ("c" in drawn) == (drawn["a"] in ("x", "y") and drawn["b"] == 2)


def test_a_chosen_section_takes_the_place_of_the_old_one():
    plain = {"seed": 0, "model": {"name": "resnet12", "dropout": 0.1}, "outer": {"lr": 0.1, "steps": 5}}
    found = apply_configuration(plain, {"model.width": 8, "model": {"name": "conv4"}, "outer.lr": 0.2})
    assert found == {"seed": 0, "model": {"name": "conv4", "width": 8}, "outer": {"lr": 0.2, "steps": 5}}
    assert plain["model"] == {"name": "resnet12", "dropout": 0.1}
    with pytest.raises(ValueError, match=re.escape("seed.x: 'seed' is a value, not a section: search over 'seed'")):
        apply_configuration(plain, {"seed.x": 1})


def test_what_is_drawn_is_a_configuration():
    base = {"tasks": {"name": "strokes"}, "model": {"name": "conv4"}, "algorithm": {"name": "maml"}}
    space = read_space(
        {
            "algorithm.inner_lr": "loguniform(1e-3, 1)",
            "outer.lr": "loguniform(1e-4, 1e-1)",
            "algorithm.inner_steps": "int(1, 10)",
            "tasks.train.ways": "int(5, 20)",
            "model": "choice({name: conv4}, {name: resnet12})",
            "model.width": {"from": "logint(16, 128)", "when": {"model": {"name": "conv4"}}},
            "model.normalization": {"from": "choice(transductive, inductive)", "when": {"model": {"name": "conv4"}}},
        }
    )
    for number in range(20):
        drawn = space.sample(3, number)
        config = read_config(apply_configuration(base, drawn))
        assert config.algorithm.inner_lr == drawn["algorithm.inner_lr"]
        assert config.tasks.train.ways == drawn["tasks.train.ways"]
        assert config.names.model == drawn["model"]["name"]


REFUSED = {
    "space: [1] is not a section": [1],
    "space: is empty: name a field": {},
    "space.a: no function 'unifrom' (did you mean uniform?): write one of": {"a": "unifrom(0, 1)"},
    "space.a: 0.5 is not a distribution: write a list, or one of uniform": {"a": 0.5},
    "space.a: 'adam' is not a distribution": {"a": "adam"},
    "space.a: 2 to 1 is empty: give the lower bound first": {"a": "uniform(2, 1)"},
    "space.a: 1 to 1 is empty": {"a": "int(1, 1)"},
    "space.a: 0 has no logarithm: begin above zero": {"a": "loguniform(0, 1)"},
    "space.a: -1 has no logarithm": {"a": "logint(-1, 4)"},
    "space.a: uniform takes two bounds, not 1: give low and high": {"a": "uniform(1)"},
    "space.a: uniform takes two bounds, not 3": {"a": "uniform(1, 2, 3)"},
    "space.a: 'x' to 'y' are not two numbers": {"a": "uniform(x, y)"},
    "space.a: 0 to inf are not two numbers": {"a": "uniform(0, .inf)"},
    "space.a: 0.5 to 3 are not two integers": {"a": "int(0.5, 3)"},
    "space.a: 0 to 9007199254740992 goes beyond 2^53: lower the bounds": {"a": "int(0, 9007199254740992)"},
    "space.a: a choice of nothing: give options": {"a": "choice()"},
    "space.a: one option, 'x', leaves no choice": {"a": "choice(x)"},
    "space.a: 'x' stands twice: give each option once": {"a": "choice(x, y, x)"},
    "space.a: datetime.date(2020, 1, 1) is no plain value": {"a": "choice(2020-01-01, y)"},
    "space.a: 'choice({name: conv4)' cannot be read: write its arguments as in a list": {"a": "choice({name: conv4)"},
    "space.'a..b': is not a field": {"a..b": "int(1, 2)"},
    "space.a: {'from': 'int(1, 2)'} is neither: write a distribution, or {from: distribution": {
        "a": {"from": "int(1, 2)"}
    },
    "space.a.when: no parameter 'modle' in this space (did you mean model?): add it or remove the condition": {
        "model": "choice(x, y)",
        "a": {"from": "int(1, 2)", "when": {"modle": "x"}},
    },
    "space.a.when: model is never 'z': give a value of its distribution": {
        "model": "choice(x, y)",
        "a": {"from": "int(1, 2)", "when": {"model": "z"}},
    },
    "space.a.when: lr is a real number, never one value": {
        "lr": "uniform(0, 1)",
        "a": {"from": "int(1, 2)", "when": {"lr": 0.5}},
    },
    "space.a.when: no value of b is given": {"b": "int(1, 2)", "a": {"from": "int(1, 2)", "when": {"b": []}}},
    "space.a.when: a and b depend on each other: remove one condition": {
        "a": {"from": "int(1, 2)", "when": {"b": 1}},
        "b": {"from": "int(1, 2)", "when": {"a": 1}},
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_a_space_is_refused_in_a_line(message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_space(REFUSED[message])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_empty_space_holds_one_configuration():
    assert Space(()).sample(0, 0) == {}
