"""`tasks.name=causal_tables`: tables by address, whose support sets show every class."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from tasks.random import generator
from tasks.sources.causal_models import grow, standardised
from tasks.sources.causal_tables import CausalTables
from tasks.types import EpisodeShape

SHAPE = EpisodeShape(None, 12, 5)
INDEX = st.integers(0, 2**63 - 1)
SOURCE = CausalTables((1, 6), (2, 4), fewest=4)


def equal(one, other) -> bool:
    return all(
        torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9))
        for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True)
    )


@given(indices=st.lists(INDEX, min_size=1, max_size=4), seed=INDEX, fewest=st.sampled_from([None, 4]))
def test_a_table_is_the_same_whatever_is_asked_with_it(indices, seed, fewest):
    drawn = CausalTables((1, 6), (2, 4), fewest).distribution("test", SHAPE, seed)
    together = drawn.episodes(indices)
    for row, index in enumerate(indices):
        alone = drawn.episodes([index])
        assert equal(tree_leaves(alone), [leaf[row : row + 1] for leaf in tree_leaves(together)])


@given(index=INDEX, split=st.sampled_from(["train", "validation", "test"]))
def test_classes_are_numbered_from_zero_and_all_in_the_support_set(index, split):
    one = SOURCE.distribution(split, SHAPE, 0).episodes([index])
    shown = one.support.y[one.support.mask].unique()
    assert 2 <= len(shown) <= 4 and shown.tolist() == list(range(len(shown)))
    assert set(one.query.y[0].tolist()) <= set(shown.tolist())


@given(index=INDEX)
def test_padding_and_absent_features_are_nan_and_sizes_within_their_ranges(index):
    one = SOURCE.distribution("train", SHAPE, 0).episodes([index])
    rows = int(one.support.mask.sum())
    assert 4 <= rows <= 12 and bool(one.support.mask[0, :rows].all())
    assert bool(one.support.x[0, rows:].isnan().all()) and not bool(one.support.y[0, rows:].any())
    everything = torch.cat([one.support.x[0, :rows], one.query.x[0]])
    absent = everything.isnan().all(0)
    assert 1 <= int((~absent).sum()) <= 6
    assert not bool(absent[: int((~absent).nonzero().max()) + 1].any()), "absent features come last"


def test_tables_together_have_one_size_and_others_another():
    drawn = CausalTables((1, 6), (2, 4), fewest=4, together=4, missing=0).distribution("train", SHAPE, 0)
    tables = drawn.episodes(range(40))
    sizes = torch.stack([tables.support.mask.sum(1), (~tables.query.x.isnan()).any(1).sum(1)], 1).view(10, 4, 2)
    assert bool((sizes == sizes[:, :1]).all()) and len(sizes[:, 0].unique(dim=0)) > 5


def test_few_classes_and_features_are_the_most_frequent():
    drawn = CausalTables(missing=0).distribution("train", EpisodeShape(None, 40, 5), 0)
    tables = drawn.episodes(range(300))
    features = (~tables.query.x.isnan()).any(1).sum(1)
    classes = tables.support.y.amax(1) + 1
    assert features.min() == 1 and features.max() == 20 and 4 < features.float().mean() < 9
    assert classes.min() == 2 and classes.max() == 10 and int((classes == 2).sum()) > 60


def test_about_the_stated_share_of_tables_has_missing_values():
    for share, least, most in ((0.0, 0.0, 0.0), (0.5, 0.3, 0.6), (1.0, 0.8, 1.0)):
        tables = CausalTables((5, 5), missing=share).distribution("train", SHAPE, 0).episodes(range(100))
        found = torch.cat([tables.support.x, tables.query.x], 1).isnan().flatten(1).any(1).float().mean()
        assert least <= float(found) <= most


def test_features_tell_classes_apart():
    """A nearest neighbour is right more often than the most frequent class: tables are not noise."""
    tables = CausalTables((2, 6), missing=0).distribution("test", EpisodeShape(None, 60, 20), 0).episodes(range(200))
    x, y = tables.support.x.nan_to_num(0.0), tables.support.y
    scale = x.std(1, keepdim=True).clamp(min=1e-6)
    distances = torch.cdist(tables.query.x.nan_to_num(0.0) / scale, x / scale)
    nearest = y.gather(1, distances.argmin(2))
    frequent = torch.stack([row.bincount().argmax() for row in y])[:, None]
    right, base = ((guess == tables.query.y).float().mean() for guess in (nearest, frequent))
    assert float(right) > float(base) + 0.05


@given(index=INDEX)
def test_nodes_are_standardised_and_no_cause_depends_on_its_effects(index):
    roots = generator(0, 1, index).standard_normal((30, 2))
    few, many = (grow(generator(0, 2, index), roots, count) for count in (9, 9))
    assert few.shape == (30, 9) and np.array_equal(few, many)
    np.testing.assert_allclose(few.mean(0), 0, atol=1e-9)
    assert all(std == 0 or std == pytest.approx(1, abs=1e-6) for std in few.std(0).round(9))
    np.testing.assert_array_equal(few[:, :2], standardised(roots))


def test_generators_of_other_addresses_draw_other_numbers():
    drawn = [generator(*address).random(4).tolist() for address in ((0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2))]
    assert len({number for four in drawn for number in four}) == 16
    assert generator(0, 1, 2).random(4).tolist() == drawn[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"features": (0, 3)}, "features: 0 to 3 is no range: set two numbers, 1 or more"),
        ({"features": (4, 3)}, "features: 4 to 3 is no range"),
        ({"classes": (1, 3)}, "classes: 1 to 3 is no range: set two numbers, 2 or more"),
        ({"missing": 1.5}, "missing: 1.5 is no share of tables: set a number between 0 and 1"),
        ({"fewest": 1}, "fewest: 1 rows show no two classes: set 2 or more"),
        ({"together": 0}, "together: 0 tables of one size: set 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        CausalTables(**settings)


@pytest.mark.parametrize(
    ("settings", "shape", "says"),
    [
        ({}, EpisodeShape(5, 12, 5), "tasks.train.ways: tables differ in their number of classes"),
        ({"fewest": 13}, SHAPE, "tasks.fewest: 13 rows at least, and 12 at most: raise tasks.train.shots"),
        ({"classes": (5, 9), "fewest": 4}, SHAPE, "tasks.train.shots: 4 rows cannot show 5 classes"),
    ],
)
def test_shapes_that_cannot_be_are_refused(settings, shape, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        CausalTables(**settings).distribution("train", shape, 0)
