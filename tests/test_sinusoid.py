"""Sinusoids: the law of every distribution, the ranges, and that they are what they say."""

import pytest
import torch

from tasks.sources.sinusoid import Sinusoid
from tasks.types import EpisodeShape, TaskSpec
from tests import conformance_distributions as conformance

SHAPE = EpisodeShape(ways=None, shots=5, queries=7)


def test_a_distribution_conforms():
    conformance.check_law(Sinusoid().distribution("train", SHAPE, 3))
    conformance.check_seeds_and_splits(Sinusoid(), SHAPE)


def test_shapes_and_ranges():
    distribution = Sinusoid().distribution("train", SHAPE, 0)
    episode = distribution.episodes(range(2000))
    assert distribution.spec == TaskSpec("regression", None, (1,), (1,))
    for part, count in ((episode.support, 5), (episode.query, 7)):
        assert part.x.shape == part.y.shape == (2000, count, 1)
        assert part.x.dtype == part.y.dtype == torch.float32
    x = torch.cat([episode.support.x, episode.query.x], 1)
    assert -5 <= x.min() < -4.99
    assert 4.99 < x.max() <= 5
    assert distribution.episodes([]).support.x.shape == (0, 5, 1)


def test_every_task_is_one_sinusoid():
    """y = a sin x − b cos x has two unknowns: least squares finds them, leaves nothing over, and they are in range."""
    episode = Sinusoid(amplitude=(1.0, 2.0)).distribution("test", SHAPE, 0).episodes(range(200))
    x, y = (torch.cat(pair, 1).double() for pair in zip(episode.support, episode.query, strict=True))
    basis = torch.cat([x.sin(), -x.cos()], 2)
    found = torch.linalg.lstsq(basis, y).solution
    assert (basis @ found - y).abs().max() < 1e-5
    amplitude = found.norm(dim=1)
    assert 0.999 < amplitude.min() < 1.05
    assert 1.95 < amplitude.max() < 2.001
    assert (found[:, 1] > -1e-4).all(), "a phase between 0 and π"


def test_more_queries_are_of_the_same_task():
    few = Sinusoid().distribution("test", SHAPE, 0).episodes([4])
    many = Sinusoid().distribution("test", EpisodeShape(None, 5, 200), 0).episodes([4])
    assert torch.equal(few.support.x, many.support.x)
    assert torch.equal(few.query.y, many.query.y[:, :7])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Sinusoid().distribution("test", EpisodeShape(5, 1, 1), 0), r"set tasks\.test\.ways=null"),
        (lambda: Sinusoid(x=(5.0, -5.0)), "x: 5 to -5 is not a range"),
        (lambda: Sinusoid(phase=(0.0, float("nan"))), "phase: 0 to nan is not a range"),
    ],
)
def test_what_makes_no_sinusoid_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
