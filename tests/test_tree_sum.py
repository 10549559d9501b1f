"""The sum does not depend on the order of arrival, nor on who formed which part of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metatrain.training.tree_sum import TreeSum, flatten, layout_of, tree_sum, unflatten


def leaves(count: int) -> list[dict[str, torch.Tensor]]:
    # Magnitudes far apart, so that any other order of addition rounds differently.
    generator = torch.Generator().manual_seed(count)
    return [{"w": torch.randn(8, generator=generator) * 10.0 ** (i % 7 - 3)} for i in range(count)]


@given(st.integers(1, 20).flatmap(lambda n: st.permutations(range(n))))
def test_any_order_of_arrival_gives_the_same_bits(order):
    trees = leaves(len(order))
    summed = TreeSum(len(order))
    for number in order:
        summed.add(number, trees[number])
    assert torch.equal(summed.total()["w"], tree_sum(trees, len(order))["w"])


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_halves_may_be_summed_elsewhere(count):
    trees = leaves(count)
    half = count // 2
    parts = [tree_sum(trees[:half], half), tree_sum(trees[half:], half)]
    assert torch.equal(tree_sum(parts, 2)["w"], tree_sum(trees, count)["w"])


def test_the_tree_is_not_a_plain_running_sum():
    trees = leaves(16)
    running = sum((tree["w"] for tree in trees[1:]), trees[0]["w"])
    assert not torch.equal(running, tree_sum(trees, 16)["w"])


def test_a_missing_leaf_is_noticed():
    summed = TreeSum(3)
    summed.add(0, {"w": torch.ones(1)})
    with pytest.raises(AssertionError, match="missing"):
        summed.total()


def test_parameters_survive_the_journey_as_a_vector():
    params = {"b": torch.randn(2, 3), "a": torch.randn(4), "c": torch.tensor(1.5)}
    vector = flatten(params)
    assert vector.shape == (11,)
    assert vector.dtype == np.float32
    vector.flags.writeable = False  # as Ray hands it out
    back = unflatten(vector, layout_of(params))
    assert all(torch.equal(back[name], params[name]) for name in params)
