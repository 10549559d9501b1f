"""`tasks.name=gaussian_process`: functions by address, and posteriors against scikit-learn's."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, ExpSineSquared, Kernel, Matern
from torch.utils._pytree import tree_leaves

from tasks.sources.gaussian_process import NAMES, GaussianProcess
from tasks.types import Episode, EpisodeShape

SHAPE = EpisodeShape(None, 6, 4)
INDICES = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5)


@given(
    kernel=st.sampled_from(NAMES), indices=INDICES, seed=st.integers(0, 2**63 - 1), fewest=st.sampled_from([None, 0])
)
def test_a_task_is_the_same_whatever_is_asked_with_it(kernel, indices, seed, fewest):
    drawn = GaussianProcess(kernel, length=(0.1, 0.6), fewest=fewest).distribution("test", SHAPE, seed)
    together = drawn.episodes(indices)
    for row, index in enumerate(indices):
        alone = drawn.episodes([index])
        for one, all_ in zip(tree_leaves(alone), tree_leaves(together), strict=True):
            assert torch.equal(one[0], all_[row])


@given(kernel=st.sampled_from(NAMES), index=st.integers(0, 2**63 - 1))
def test_the_support_set_does_not_depend_on_the_number_of_queries(kernel, index):
    few, many = (
        GaussianProcess(kernel, fewest=2).distribution("train", EpisodeShape(None, 6, queries), 1).episodes([index])
        for queries in (1, 9)
    )
    assert all(torch.equal(a, b) for a, b in zip(few.support, many.support, strict=True))


REFERENCE: dict[str, Kernel] = {
    "eq": RBF(0.3),
    "matern": Matern(0.3, nu=2.5),
    "weakly_periodic": RBF(0.6) * ExpSineSquared(1.0, 0.3),
}


@pytest.mark.parametrize("kernel", REFERENCE)
def test_the_posterior_is_that_of_an_independent_implementation(kernel):
    noise, scale = 0.02, 1.7
    source = GaussianProcess(kernel, (0.3, 0.3), (scale, scale), noise, fewest=3)
    tasks = source.distribution("test", SHAPE, 0).episodes(range(20))
    for task in range(20):
        inside = tasks.support.mask[task]
        exact = GaussianProcessRegressor(ConstantKernel(scale**2) * REFERENCE[kernel], alpha=noise, optimizer=None)
        exact.fit(tasks.support.x[task][inside].double().numpy(), tasks.support.y[task][inside, 0].double().numpy())
        mean, std = exact.predict(tasks.query.x[task].double().numpy(), return_std=True)
        np.testing.assert_allclose(tasks.posterior[0][task, :, 0], mean, atol=2e-4)
        np.testing.assert_allclose(tasks.posterior[1][task, :, 0], np.sqrt(std**2 + noise), atol=2e-4)


@pytest.mark.parametrize("kernel", REFERENCE)
def test_targets_are_as_uncertain_as_the_posterior_says(kernel):
    tasks = (
        GaussianProcess(kernel, fewest=0).distribution("validation", EpisodeShape(None, 10, 10), 3).episodes(range(800))
    )
    mean, std = tasks.posterior
    z = (tasks.query.y - mean) / std
    assert abs(float(z.mean())) < 0.05
    assert abs(float(z.std()) - 1) < 0.03


def test_support_sets_have_every_size_and_their_padding_is_zero():
    tasks = GaussianProcess(fewest=2).distribution("train", SHAPE, 0).episodes(range(300))
    sizes = tasks.support.mask.sum(1)
    assert sorted(set(sizes.tolist())) == [2, 3, 4, 5, 6]
    assert np.bincount(sizes)[2:].min() > 300 / 5 / 2
    assert (
        float(tasks.support.x[~tasks.support.mask].abs().sum())
        == 0
        == float(tasks.support.y[~tasks.support.mask].abs().sum())
    )


def test_no_tasks_have_the_shapes_of_some():
    drawn = GaussianProcess(fewest=0).distribution("test", SHAPE, 0)
    shapes = [leaf.shape[1:] for leaf in tree_leaves(drawn.episodes([1]))]
    assert [leaf.shape for leaf in tree_leaves(drawn.episodes([]))] == [(0, *shape) for shape in shapes]


def test_smooth_functions_of_great_scale_can_be_drawn():
    source = GaussianProcess("eq", length=(20.0, 20.0), scale=(1e3, 1e3), noise=1e-6)
    tasks = source.distribution("test", EpisodeShape(None, 40, 60), 0).episodes([0])
    assert all(bool(leaf.isfinite().all()) for leaf in tree_leaves(tasks))


def test_training_tasks_and_functions_without_a_posterior_hold_none():
    for source, split in (
        (GaussianProcess(), "train"),
        (GaussianProcess("sawtooth"), "test"),
        (GaussianProcess("mixture"), "test"),
    ):
        assert isinstance(source.distribution(split, SHAPE, 0).episodes([0]), Episode)
    assert not GaussianProcess("mixture").distribution("test", SHAPE, 0).spec.posterior
    assert GaussianProcess().distribution("test", SHAPE, 0).spec.posterior


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kernel": "rbf"}, "kernel: rbf is not known: set eq, matern"),
        ({"length": (0.5, 0.1)}, "length: 0.5 to 0.1 is not a range"),
        ({"scale": (0.0, 1.0)}, "scale: 0 to 1 is not a range: set two numbers above 0"),
        ({"x": (1.0, 1.0)}, "x: 1 to 1 is not a range"),
        ({"noise": 0.0}, "noise: a variance of 0 leaves no density to predict: set it above 0"),
        ({"fewest": -1}, "fewest: -1 is no number of examples"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_its_remedy(settings, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        GaussianProcess(**settings)


def test_shapes_that_cannot_be_are_refused_with_the_remedy():
    with pytest.raises(
        ValueError, match=r"tasks\.train\.ways: a function has no classes .* set tasks\.train\.ways=null"
    ):
        GaussianProcess().distribution("train", EpisodeShape(5, 1, 1), 0)
    with pytest.raises(
        ValueError, match=r"tasks\.fewest: 9 examples at least, and 6 at most: raise tasks\.test\.shots"
    ):
        GaussianProcess(fewest=9).distribution("test", SHAPE, 0)
