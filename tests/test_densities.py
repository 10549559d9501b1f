"""Densities that learners predict, against torch.distributions, and the metrics of them."""

import math

import pytest
import torch
from torch import distributions as td

from metatrain.densities import log_density, mean_of, probability_below, std_of
from metatrain.metrics import METRICS, QUANTILES, measure, primary_of, quantile_error, quantile_sums, task_loss
from metatrain.types import Gaussian, GaussianMixture, Histogram

N, S, D = 7, 5, 2


def gaussian(*leading: int) -> Gaussian:
    torch.manual_seed(0)
    return Gaussian(torch.randn(*leading, N, D).double(), torch.rand(*leading, N, D).double() + 0.2)


def mixture(*leading: int) -> GaussianMixture:
    torch.manual_seed(1)
    return GaussianMixture(torch.randn(*leading, N, S, D).double(), torch.rand(*leading, N, S, D).double() + 0.2)


def as_torch(density: Gaussian | GaussianMixture) -> td.Distribution:
    each = td.Independent(td.Normal(density.mean, density.std), 1)
    if isinstance(density, Gaussian):
        return each
    return td.MixtureSameFamily(td.Categorical(logits=torch.zeros(density.mean.shape[:-1]).double()), each)


Y = torch.linspace(-1, 2, N * D).double().view(N, D)


@pytest.mark.parametrize("leading", [(), (3,)])
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_it_is_what_torch_s_distributions_say(make, leading):
    density = make(*leading)
    expected = as_torch(density)
    torch.testing.assert_close(log_density(density, Y), expected.log_prob(Y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean_of(density), expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(std_of(density), expected.variance.sqrt(), rtol=1e-12, atol=1e-12)


def test_probabilities_below_are_those_of_each_part():
    one, many = gaussian(), mixture()
    torch.testing.assert_close(probability_below(one, Y), td.Normal(*one).cdf(Y), rtol=1e-12, atol=1e-12)
    expected = td.Normal(many.mean, many.std).cdf(Y[:, None]).mean(1)
    torch.testing.assert_close(probability_below(many, Y), expected, rtol=1e-12, atol=1e-12)


def test_the_loss_is_minus_the_mean_log_density_and_the_score_is_the_log_likelihood():
    loss, metrics = task_loss(gaussian(), Y)
    assert float(loss) == pytest.approx(-float(as_torch(gaussian()).log_prob(Y).mean()))
    assert metrics["log_likelihood"] == -loss and float(metrics["mse"]) == pytest.approx(
        float((gaussian().mean - Y).square().mean())
    )
    found = measure([gaussian(), gaussian()], Y)
    assert found.keys() == {"loss", "log_likelihood", "mse", "quantile_error"}
    assert primary_of(found).name == "log_likelihood"


def test_the_gap_is_to_the_exact_posterior_on_the_same_targets():
    exact = Gaussian(Y + 0.1, torch.full_like(Y, 0.3))
    found = measure([gaussian(), exact], Y, exact)
    expected = float((as_torch(exact).log_prob(Y) - as_torch(gaussian()).log_prob(Y)).mean())
    assert found["oracle_gap"].tolist() == pytest.approx([expected, 0.0])
    assert not METRICS["oracle_gap"].higher_is_better


def test_quantiles_are_right_where_the_density_is_and_wrong_where_it_is_too_narrow():
    torch.manual_seed(2)
    y = torch.randn(20_000, 1).double()
    right, narrow = (Gaussian(torch.zeros_like(y)[None], torch.full_like(y, std)[None]) for std in (1.0, 0.5))
    assert quantile_sums(right, y).shape == (1, QUANTILES) and float(quantile_sums(right, y).sum()) == len(y)
    assert float(quantile_error(quantile_sums(right, y))) < 0.01
    levels = torch.arange(1, QUANTILES).double() / QUANTILES
    below = td.Normal(0, 1).cdf(0.5 * td.Normal(0, 1).icdf(levels))
    assert float(quantile_error(quantile_sums(narrow, y))) == pytest.approx(
        float((below - levels).abs().mean()), abs=0.01
    )


def test_a_density_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"predictions of shape \(7, 2\) for targets of shape \(7, 1\)"):
        task_loss(gaussian(), Y[:, :1])


def test_gradients_of_far_mixtures_are_finite():
    far = GaussianMixture(torch.full((1, 2, 1), 1e3, requires_grad=True), torch.full((1, 2, 1), 1e-2))
    loss = task_loss(far, torch.zeros(1, 1))[0]
    (slope,) = torch.autograd.grad(loss, far.mean)
    assert math.isfinite(float(loss.detach())) and bool(slope.isfinite().all())


def histogram(*leading: int) -> Histogram:
    torch.manual_seed(2)
    return Histogram(torch.randn(*leading, 5, 6).double(), torch.tensor([-1.0, 3.0]).double().expand(*leading, 5, 2))


def test_a_histogram_is_what_its_integral_says():
    """Mean, deviation and probabilities, by summing its density over a fine grid."""
    density = histogram()
    grid = torch.linspace(-8, 10, 180_001).double()
    p = torch.stack([log_density(density, y.expand(5, 1)) for y in grid[::20]], 1).exp()
    step, at = float(grid[20] - grid[0]), grid[::20]
    torch.testing.assert_close(p.sum(1) * step, torch.ones(5).double(), atol=2e-3, rtol=0)
    mean = (p * at).sum(1) * step
    torch.testing.assert_close(mean_of(density)[:, 0], mean, atol=5e-3, rtol=0)
    std = ((p * (at - mean[:, None]).square()).sum(1) * step).sqrt()
    torch.testing.assert_close(std_of(density)[:, 0], std, atol=5e-3, rtol=0)
    for y in (-2.0, -1.0, -0.3, 1.0, 2.99, 3.0, 4.2):
        below = (p * (at <= y)).sum(1) * step
        found = probability_below(density, torch.full((5, 1), y).double())
        torch.testing.assert_close(found[:, 0], below, atol=5e-3, rtol=0)


def test_histograms_at_several_points_and_their_slopes():
    y = torch.tensor([[-3.0], [-1.0], [0.4], [2.9], [5.0]]).double()
    many = histogram(3)
    for kind in (log_density, mean_of, std_of, probability_below):
        given = (y,) if kind in (log_density, probability_below) else ()
        for at in range(3):
            torch.testing.assert_close(kind(many, *given)[at], kind(Histogram(many.logits[at], many.span[at]), *given))
    logits = histogram().logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_density(Histogram(x, histogram().span), y), logits)
    assert measure([histogram()], y).keys() == {"loss", "log_likelihood", "mse", "quantile_error"}
