"""In-context learning of values, from support sets of many sizes, and what both forms refuse."""

import re

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metatrain.algorithms.in_context.in_context import InContext
from metatrain.densities import log_density, mean_of, std_of
from metatrain.engine import Engine
from metatrain.evaluation.evaluate import score_tasks
from metatrain.models import Conv4, Model, build_model
from metatrain.models.architectures import Identity
from metatrain.types import Context, Histogram
from tasks.sources.gaussian_process import GaussianProcess
from tasks.types import Episode, EpisodeShape, Examples, PaddedExamples
from tests.episodes import classification_spec, random_episodes

TASKS = GaussianProcess(fewest=0).distribution("test", EpisodeShape(None, 6, 5), 0)
MODEL: Model = build_model(Identity(), TASKS.spec, seed=0)
METHOD = InContext(width=8, layers=2, heads=2, hidden=8, bins=12)
PARAMS = {name: value.double() for name, value in METHOD.init(MODEL, TASKS.spec, 0).items()}
NO_NOISE = Context(torch.tensor(0), torch.tensor(-1))


def episodes(count: int) -> Episode:
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, TASKS.episodes(range(count)))


def task(number: int = 3) -> Episode:
    return tree_map(lambda leaf: leaf[number], episodes(number + 1))


def predict(support: Examples | PaddedExamples, x: Tensor) -> Histogram:
    (read,) = METHOD.trajectory(MODEL, PARAMS, support, NO_NOISE)
    return METHOD.predict(MODEL, PARAMS, read, x, NO_NOISE)


def same(found: Histogram, expected: Histogram) -> None:
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-9, atol=1e-9)


def test_padding_order_and_other_queries_change_no_density():
    one = task()
    expected, inside = predict(one.support, one.query.x), one.support.mask
    assert 0 < int(inside.sum()) < 6
    same(predict(Examples(one.support.x[inside], one.support.y[inside]), one.query.x), expected)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    same(predict(PaddedExamples(*(part[order] for part in one.support)), one.query.x), expected)
    alone = [predict(one.support, x[None]).logits for x in one.query.x]
    torch.testing.assert_close(torch.cat(alone), expected.logits, rtol=1e-9, atol=1e-9)


def test_an_empty_support_set_has_a_density_too():
    one = task()
    density = predict(one.support._replace(mask=torch.zeros_like(one.support.mask)), one.query.x)
    assert bool(mean_of(density).isfinite().all()) and bool((std_of(density) > 0).all())
    assert density.logits.shape == (5, 12) and density.span.tolist() == [[-4.0, 4.0]] * 5


def test_gradients_are_those_of_finite_differences_by_loop_and_vmap():
    tasks, generator = episodes(3), torch.Generator().manual_seed(0)
    context = Context(torch.zeros(3, dtype=torch.int64), torch.arange(3))

    def gradient(params: dict[str, Tensor], kind: str = "loop"):
        return METHOD.meta_gradient(MODEL, params, tasks, context, Engine(kind))

    slopes, by_vmap = gradient(PARAMS).grads, gradient(PARAMS, "vmap").grads
    assert slopes.keys() == by_vmap.keys() == PARAMS.keys()
    assert all(torch.allclose(by_vmap[name], slope, rtol=1e-9, atol=1e-11) for name, slope in slopes.items())
    along = {name: torch.randn(value.shape, generator=generator).double() for name, value in PARAMS.items()}
    expected = sum(float((slopes[name] * along[name]).sum()) for name in slopes)
    up, down = (
        float(gradient({name: value + step * along[name] for name, value in PARAMS.items()}).metrics["loss"])
        for step in (1e-5, -1e-5)
    )
    assert (up - down) / 2e-5 == pytest.approx(expected, rel=1e-4)


def test_scores_hold_the_gap_to_the_exact_posterior():
    tasks, context = episodes(4), Context(torch.zeros(4, dtype=torch.int64), torch.full((4,), -1))
    found = score_tasks(METHOD, MODEL, PARAMS, tasks, context, Engine("loop")).values
    exact = torch.distributions.Normal(*tasks.posterior).log_prob(tasks.query.y).mean((1, 2))
    torch.testing.assert_close(found["oracle_gap"][:, -1], exact - found["log_likelihood"][:, -1])
    one = task(2)
    expected = log_density(predict(one.support, one.query.x), one.query.y).mean()
    torch.testing.assert_close(found["log_likelihood"][2, -1], expected)


def test_classes_that_are_not_shown_have_no_probability():
    spec = classification_spec(3, 8, 1)
    model = build_model(Conv4(width=4, depth=2), spec, seed=0).to(torch.device("cpu"), torch.float64)
    params = {name: value.double() for name, value in METHOD.init(model, spec, 0).items()}
    support, query = tree_map(lambda leaf: leaf[0], random_episodes(spec, 1))
    two = Examples(support.x[support.y != 1], support.y[support.y != 1])
    (read,) = METHOD.trajectory(model, params, two, NO_NOISE)
    probabilities = METHOD.predict(model, params, read, query.x, NO_NOISE).softmax(1)
    assert bool((probabilities[:, 1] == 0).all()) and bool((probabilities[:, [0, 2]] > 0).all())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"heads": 3}, "algorithm.heads: 8 is no multiple of 3"),
        ({"bins": 2}, "algorithm.bins: 2 bins are two ends and no middle: set 3 or more"),
        ({"span": (1.0, 1.0)}, "algorithm.span: 1 to 1 is no range"),
        ({"layers": 0}, "algorithm.layers"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        InContext(**{"width": 8, **settings})


def test_tasks_that_cannot_be_read_are_refused():
    spec = TASKS.spec
    with pytest.raises(
        ValueError, match=re.escape("in_context predicts classes or one value, and targets have shape (2,)")
    ):
        METHOD.init(MODEL, spec._replace(y=(2,)), 0)
    pictures = classification_spec(3, 8, 1)._replace(masked=True)
    with pytest.raises(ValueError, match=r"set model\.normalization=group"):
        METHOD.init(build_model(Conv4(width=4, depth=2), pictures, 0), pictures, 0)
