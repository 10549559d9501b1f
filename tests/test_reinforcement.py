"""Policies, advantages and surrogates against their definitions and against expected returns computed exactly."""

import pytest
import torch
from torch import distributions
from torch.func import grad, jacrev

from metatrain.reinforcement import advantages as adv
from metatrain.reinforcement import policies, surrogates
from metatrain.reinforcement.policies import Categorical, Normal
from metatrain.reinforcement.trust_region import backtrack, conjugate_gradient
from tasks.environments.protocol import Box
from tests import exact_mdp
from tests.exact_mdp import enumerate_trajectories, expected_return, tables, tabular_policy, to_go


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(tree):
    return torch.cat([tree[name].reshape(-1) for name in sorted(tree)])


def surrogate(name, params, model, enumerated):
    trajectories = enumerated.trajectories
    pi = policies.action_distribution(model, params, trajectories.observations)
    log_p = policies.log_probability(pi, trajectories.actions)
    terms = surrogates.ESTIMATORS[name](log_p, log_p.detach(), to_go(trajectories.rewards), trajectories.rewards)
    return (enumerated.probability * terms.sum(-1)).sum()


def finite_differences(function, params, step=1e-5):
    """Central differences of a function of params, by name."""
    found = {}
    for name, value in params.items():
        slope = torch.zeros_like(value)
        for place in range(value.numel()):
            ahead, behind = value.clone(), value.clone()
            ahead.view(-1)[place] += step
            behind.view(-1)[place] -= step
            difference = function(params | {name: ahead}) - function(params | {name: behind})
            slope.view(-1)[place] = difference / (2 * step)
        found[name] = slope
    return found


def test_enumerated_trajectories_have_the_expected_return():
    (_, params), process = tabular_policy(), tables()
    found = enumerate_trajectories(params, process)
    assert float(found.probability.sum()) == pytest.approx(1, abs=1e-12)
    by_hand = (found.probability * found.trajectories.rewards.sum(-1)).sum()
    torch.testing.assert_close(by_hand, expected_return(params, process), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", surrogates.ESTIMATORS)
def test_every_surrogate_has_the_gradient_of_the_expected_return(name):
    (model, params), process = tabular_policy(), tables()
    found = grad(lambda p: surrogate(name, p, model, enumerate_trajectories(params, process)))(params)
    exact = finite_differences(lambda p: expected_return(p, process), params)
    torch.testing.assert_close(flat(found), flat(exact), rtol=1e-7, atol=1e-9)


def second_differences(function, params, step=1e-5):
    """Central differences of a gradient: the Hessian, [P, P] in name order."""
    rows = []
    for name in sorted(params):
        for place in range(params[name].numel()):
            ahead, behind = params[name].clone(), params[name].clone()
            ahead.view(-1)[place] += step
            behind.view(-1)[place] -= step
            slopes = [flat(grad(function)(params | {name: at})) for at in (ahead, behind)]
            rows.append((slopes[0] - slopes[1]) / (2 * step))
    return torch.stack(rows)


def hessian_of(function, params):
    found, names = jacrev(grad(function))(params), sorted(params)
    rows = [torch.cat([found[a][b].reshape(params[a].numel(), -1) for b in names], 1) for a in names]
    return torch.cat(rows)


def test_dice_has_the_second_derivatives_too_and_lvc_nearer_ones_than_the_likelihood():
    (model, params), process = tabular_policy(), tables()
    enumerated = enumerate_trajectories(params, process)
    exact = second_differences(lambda p: expected_return(p, process), params)
    found = {
        name: hessian_of(lambda p, name=name: surrogate(name, p, model, enumerated), params)
        for name in surrogates.ESTIMATORS
    }
    torch.testing.assert_close(found["dice"], exact, rtol=1e-6, atol=1e-8)
    error = {name: float((one - exact).norm() / exact.norm()) for name, one in found.items()}
    assert error["dice"] < 1e-6 < 0.05 < error["lvc"] < error["likelihood"]


def test_the_importance_surrogate_has_the_gradient_of_the_expected_return_where_it_acted():
    (model, params), process = tabular_policy(), tables()
    weighed = enumerate_trajectories(params, process)
    acted = policies.log_probability(weighed.trajectories.policy, weighed.trajectories.actions)

    def value(p):
        pi = policies.action_distribution(model, p, weighed.trajectories.observations)
        log_p = policies.log_probability(pi, weighed.trajectories.actions)
        terms = surrogates.importance(log_p, acted, to_go(weighed.trajectories.rewards), weighed.trajectories.rewards)
        return exact_mdp.STEPS * surrogates.mean_of_steps(terms, weighed.trajectories.mask)

    exact = finite_differences(lambda p: expected_return(p, process), params)
    torch.testing.assert_close(flat(grad(value)(params)), flat(exact), rtol=1e-7, atol=1e-9)


def test_advantages_are_those_of_their_definition():
    rewards, values = drawn(3, 7), drawn(3, 7, seed=1)
    mask = torch.ones(3, 7, dtype=torch.float64)
    mask[1, 4:] = 0
    rewards = rewards * mask
    for discount, trace in ((0.9, 0.8), (1.0, 1.0), (0.7, 0.0)):
        found = adv.generalised_advantages(rewards, values, mask, discount, trace)
        for e, length in enumerate((7, 4, 7)):
            worth = [*values[e, :length].tolist(), 0.0]
            delta = [float(rewards[e, t]) + discount * worth[t + 1] - worth[t] for t in range(length)]
            for t in range(7):
                wanted = sum((discount * trace) ** k * delta[t + k] for k in range(length - t)) if t < length else 0.0
                assert float(found[e, t]) == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    scaled = adv.normalised(found, mask)[mask.bool()]
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-12)
    assert float(scaled.square().mean()) == pytest.approx(1, abs=1e-6)


def test_the_linear_baseline_is_the_least_squares_fit_of_its_features():
    observations, mask = 3 * drawn(6, 9, 2), torch.ones(6, 9, dtype=torch.float64)
    mask[2, 5:] = 0
    time = (torch.arange(9, dtype=torch.float64) / 100).expand(6, 9)
    exact = 2 + observations[..., 0] - 0.5 * observations[..., 1] ** 2 + 3 * time
    found = adv.linear_baseline(observations, mask, torch.where(mask > 0, exact, 1e6))
    torch.testing.assert_close(found * mask, exact * mask, rtol=0, atol=1e-3)
    noisy = exact + drawn(6, 9, seed=2)
    found = adv.linear_baseline(observations, mask, noisy)
    constant = (((noisy - noisy[mask > 0].mean()) * mask) ** 2).sum()
    assert float((((noisy - found) * mask) ** 2).sum()) < 0.2 * float(constant)


PAIRS = {
    "normal": (
        [Normal(drawn(5, 3, seed=s), 0.3 * drawn(5, 3, seed=s + 1)) for s in (0, 2)],
        lambda pi: distributions.Independent(distributions.Normal(pi.mean, pi.log_std.exp()), 1),
    ),
    "categorical": (
        [Categorical(drawn(5, 4, seed=s)) for s in (0, 2)],
        lambda pi: distributions.Categorical(logits=pi.logits),
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_policies_are_the_distributions_that_torch_has(kind):
    (one, other), theirs = PAIRS[kind]
    actions = theirs(other).sample()
    close = torch.testing.assert_close
    close(policies.log_probability(one, actions), theirs(one).log_prob(actions), rtol=1e-12, atol=1e-12)
    close(policies.entropy(one), theirs(one).entropy(), rtol=1e-12, atol=1e-12)
    exact = distributions.kl_divergence(theirs(one), theirs(other))
    close(policies.divergence(one, other), exact, rtol=1e-12, atol=1e-12)


def test_actions_are_drawn_as_often_as_the_policy_says():
    key = torch.tensor(12345)
    pi = Categorical(torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=torch.float64))
    numbers = policies.action_numbers(exact_mdp.SOURCE.environment.actions, key, 20000)
    found = torch.bincount(policies.sample(Categorical(pi.logits.expand(20000, 4)), numbers), minlength=4) / 20000
    torch.testing.assert_close(found.double(), pi.logits.softmax(-1), rtol=0, atol=0.015)
    normal = Normal(torch.full((20000, 1), 2.0), torch.full((20000, 1), 0.5).log())
    drawn_actions = policies.sample(normal, policies.action_numbers(Box(1), key, 20000))
    assert float(drawn_actions.mean()) == pytest.approx(2, abs=0.02)
    assert float(drawn_actions.std()) == pytest.approx(0.5, abs=0.02)


def answered(generator, product):
    """Run a generator of products to its end."""
    try:
        wanted = next(generator)
        while True:
            wanted = generator.send(product(wanted))
    except StopIteration as done:
        return done.value


def test_conjugate_gradient_solves_in_as_many_products_as_dimensions():
    half = drawn(6, 6)
    matrix = half @ half.T + torch.eye(6, dtype=torch.float64)
    b = {"x": drawn(2, 2, seed=3), "y": drawn(2, seed=4)}
    calls = 0

    def product(p):
        nonlocal calls
        calls += 1
        out = matrix @ torch.cat([p["x"].flatten(), p["y"]])
        return {"x": out[:4].view(2, 2), "y": out[4:]}

    found = answered(conjugate_gradient(b, 6, damping=0.1), product)
    x = torch.cat([found.x["x"].flatten(), found.x["y"]])
    wanted = torch.linalg.solve(matrix + 0.1 * torch.eye(6), torch.cat([b["x"].flatten(), b["y"]]))
    torch.testing.assert_close(x, wanted, rtol=1e-6, atol=1e-8)
    assert calls == 6
    assert found.curvature == pytest.approx(float(x @ (matrix @ x) + 0.1 * x @ x), rel=1e-6)


def test_candidates_shrink_towards_the_start():
    found = list(backtrack({"a": torch.tensor([1.0])}, {"a": torch.tensor([2.0])}, 0.5, 3))
    assert [float(one["a"]) for one in found] == [-1.0, 0.0, 0.5]
