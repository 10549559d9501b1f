"""Test the optimisers of the inner loop against torch.optim and against double backward through it."""

import pytest
import torch
from torch.func import grad

from metatrain.algorithms import ANIL, BOIL, FOMAML, MAML
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer, fast_weights, root
from metatrain.engine import Engine, unrolled_gradient
from metatrain.models import Conv4, build_model
from metatrain.types import InnerLoop
from tasks.types import Episode, Examples
from tests.episodes import classification_spec, context_of, random_episodes

SPEC = classification_spec(ways=3, size=8, channels=1)
OPTIMIZERS = [InnerOptimizer(), InnerOptimizer(momentum=0.9), InnerOptimizer("adam"), InnerOptimizer("adam", beta1=0.0)]
STEPS, RATE = 4, 0.05


def fitted(w, x, y):
    return ((torch.tanh(x @ w) - y) ** 2).mean()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_weights_move_as_those_of_torch_do(optimizer):
    torch.manual_seed(0)
    w, x, y = (torch.randn(size, dtype=torch.float64) for size in [(3,), (5, 3), (5,)])
    leaf = w.clone().requires_grad_()
    sgd = torch.optim.SGD([leaf], RATE, momentum=optimizer.momentum)
    theirs = torch.optim.Adam([leaf], RATE, betas=(optimizer.beta1, 0.999)) if optimizer.name == "adam" else sgd
    fast = optimizer.start({"w": w})
    for t in range(STEPS):
        theirs.zero_grad()
        fitted(leaf, x, y).backward()
        theirs.step()
        slope = {"w": grad(fitted)(fast_weights(fast)["w"], x, y)}
        fast = optimizer.step(fast, slope, lambda name: RATE, torch.tensor(t))
        assert torch.allclose(fast_weights(fast)["w"], leaf.detach(), rtol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_meta_gradients_against_double_backward(optimizer):
    """Of the initial weights and of the rate, in float64; the reference is written with autograd alone."""
    torch.manual_seed(1)
    params = {"w": torch.randn(3, dtype=torch.float64), "rate": torch.tensor(RATE, dtype=torch.float64)}
    x, y = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)

    def step(p, fast, support, t, context):
        slope = {"w": grad(fitted)(fast_weights(fast)["w"], *support)}
        return optimizer.step(fast, slope, lambda name: p["rate"], t)

    def loss(p, fast, support, query, t, context):
        value = fitted(fast_weights(fast)["w"], *query)
        return value, {"loss": value}

    inner = InnerLoop(lambda p, s, c: optimizer.start({"w": p["w"]}), step, loss, STEPS)
    task = Episode(Examples(x[:1], y[:1]), Examples(x[1:], y[1:]))
    found = unrolled_gradient(inner, params, task, context_of(1), Engine("loop")).grads

    w0, rate = (params[name].clone().requires_grad_() for name in ("w", "rate"))
    w, m, v = w0, torch.zeros_like(w0), torch.zeros_like(w0)
    for t in range(1, STEPS + 1):
        (g,) = torch.autograd.grad(fitted(w, x[0], y[0]), w, create_graph=True)
        if optimizer.name == "sgd":
            m = optimizer.momentum * m + g
            w = w - rate * m
        else:
            m, v = optimizer.beta1 * m + (1 - optimizer.beta1) * g, 0.999 * v + 0.001 * g * g
            w = w - rate * (m / (1 - optimizer.beta1**t)) / ((v / (1 - 0.999**t)).sqrt() + optimizer.eps)
    expected = torch.autograd.grad(fitted(w, x[1], y[1]), [w0, rate])
    for mine, theirs in zip((found["w"], found["rate"]), expected, strict=True):
        assert (mine - theirs).abs().max() <= 1e-9 * theirs.abs().max()


def test_adam_is_finite_where_gradients_are_zero():
    """All-black images: the first layer's weights get gradients of exactly zero at every step."""
    model = build_model(Conv4(width=4, depth=2, normalization="none"), SPEC, seed=0)
    tasks = random_episodes(SPEC, 2, dtype=torch.float32)
    black = Episode(*(Examples(torch.zeros_like(part.x), part.y) for part in tasks))
    algorithm = MAML(0.01, 3, InnerOptimizer("adam"))
    found = algorithm.meta_gradient(model, model.initial(), black, context_of(2), Engine("loop"))
    assert all(torch.isfinite(value).all() for value in found.grads.values())
    assert float(found.grads["model.head.bias"].abs().max()) > 0


def test_the_root_is_differentiable_twice_at_zero():
    zero = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(grad(lambda v: root(v).sum())(zero), zero)
    assert torch.allclose(grad(lambda v: root(v).sum())(zero + 4), zero + 0.25)


@pytest.mark.parametrize("kind", [MAML, FOMAML, ANIL, BOIL], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("optimizer", [InnerOptimizer(momentum=0.5), InnerOptimizer("adam", eps=1e-3)], ids=str)
def test_methods_that_descend_take_any_of_them(kind, optimizer):
    model = build_model(Conv4(width=4, depth=2, normalization="none"), SPEC, seed=0)
    model = model.to(torch.device("cpu"), torch.float64)
    algorithm = kind(0.05, 3, optimizer)
    params = {name: value.double() for name, value in algorithm.init(model, SPEC, 0).items()}
    tasks, context = random_episodes(SPEC, 2), context_of(2)
    looped, lifted = (algorithm.meta_gradient(model, params, tasks, context, Engine(v)) for v in ("loop", "vmap"))
    assert all(torch.allclose(looped.grads[name], lifted.grads[name], rtol=1e-9, atol=1e-12) for name in params)
    plain = kind(0.05, 3).meta_gradient(model, params, tasks, context, Engine("loop"))
    assert any(not torch.allclose(looped.grads[name], plain.grads[name], rtol=1e-3) for name in params)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"name": "adam", "momentum": 0.9}, "momentum"),
        ({"beta1": 0.5}, "beta1"),
        ({"momentum": 1.0}, "momentum"),
        ({"name": "adam", "eps": 0.0}, "eps"),
    ],
)
def test_settings_without_effect_or_out_of_range_are_refused(settings, field):
    with pytest.raises(ValueError, match=f"algorithm.inner_optimizer.*{field}"):
        InnerOptimizer(**settings)
