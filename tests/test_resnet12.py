"""Test ResNet-12 against one from torch.nn.functional alone, and its meta-gradients against double backward."""

import pytest
import torch
from torch.nn import functional as F

from metatrain.algorithms import MAML, ProtoNet
from metatrain.engine import Engine
from metatrain.models import ResNet12, build_model
from tests.episodes import classification_spec, context_of, random_episodes
from tests.reference import log_softmax_loss

NO_NOISE = torch.tensor(-1)
CPU = torch.device("cpu")
NARROW = (2, 3, 4, 5)


def reference_resnet12(w, x, reference=None):
    """Embeddings, by the parameters' names and nothing else of ours; `reference`: rows that lend their statistics."""

    def normalized(x, name):
        mean = x[:reference].mean((0, 2, 3), keepdim=True)
        var = ((x[:reference] - mean) ** 2).mean((0, 2, 3), keepdim=True)
        weight, bias = w[f"{name}.weight"].view(1, -1, 1, 1), w[f"{name}.bias"].view(1, -1, 1, 1)
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    for b in (f"model.body.{block}" for block in range(4)):
        y = F.conv2d(x, w[f"{b}.path.0.weight"], padding=1)
        y = F.leaky_relu(normalized(y, f"{b}.path.1"), 0.1)
        y = F.conv2d(y, w[f"{b}.path.3.weight"], padding=1)
        y = F.leaky_relu(normalized(y, f"{b}.path.4"), 0.1)
        y = normalized(F.conv2d(y, w[f"{b}.path.6.weight"], padding=1), f"{b}.path.7")
        shortcut = normalized(F.conv2d(x, w[f"{b}.shortcut.0.weight"]), f"{b}.shortcut.1")
        x = F.max_pool2d(F.leaky_relu(y + shortcut, 0.1), 2)
    return x.flatten(2).mean(2)


def naive_maml(params, tasks, lr, steps, inductive):
    """Sum over tasks of d/dθ L_Q(θ − α∇L_S(θ) − …), the whole graph kept."""
    theta = {name: value.clone().requires_grad_() for name, value in params.items()}
    total = {name: torch.zeros_like(value) for name, value in params.items()}

    def logits(w, x, support=None):
        rows = 0 if support is None else len(support)
        whole = x if support is None else torch.cat([support, x])
        embedded = reference_resnet12(w, whole, rows or None)[rows:]
        return embedded @ w["model.head.weight"].T + w["model.head.bias"]

    for sx, sy, qx, qy in zip(*tasks.support, *tasks.query, strict=True):
        w = dict(theta)
        for _ in range(steps):
            slopes = torch.autograd.grad(log_softmax_loss(logits(w, sx), sy), list(w.values()), create_graph=True)
            w = {name: value - lr * slope for (name, value), slope in zip(w.items(), slopes, strict=True)}
        loss = log_softmax_loss(logits(w, qx, sx if inductive else None), qy)
        for name, slope in zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True):
            total[name] += slope
    return total


def built(spec, **settings):
    """A model in float64 and its parameters, scales and shifts of the normalisation moved off one and zero."""
    model = build_model(ResNet12(**settings), spec, seed=2).to(CPU, torch.float64)
    generator = torch.Generator().manual_seed(3)
    params = {name: value.double() for name, value in model.initial().items()}
    return model, {
        name: value + 0.3 * torch.rand(value.shape, generator=generator, dtype=torch.float64) * (value.dim() == 1)
        for name, value in params.items()
    }


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16), (3, 35, 84)])
def test_embeddings_equal_the_reference(shape):
    spec = classification_spec()._replace(x=shape)
    model, params = built(spec, widths=(4, 6, 8, 10), drop=0.0)
    x = torch.rand(5, *shape, dtype=torch.float64)
    found = model.embed(params, x, NO_NOISE)
    assert found.shape == (5, 10)
    assert torch.allclose(found, reference_resnet12(params, x), rtol=1e-9, atol=1e-12)
    dropping, _ = built(spec, widths=(4, 6, 8, 10))
    assert torch.equal(dropping.embed(params, x, NO_NOISE), found), "without a noise key nothing is dropped"
    assert not torch.allclose(dropping.embed(params, x, torch.tensor(7)), found)


@pytest.mark.parametrize(("widths", "millions"), [((64, 128, 256, 512), 8.0), ((64, 160, 320, 640), 12.4)])
def test_has_as_many_parameters_as_published(widths, millions):
    params = build_model(ResNet12(widths), classification_spec(5, 84, 3), seed=0).initial(head=False)
    assert round(sum(value.numel() for value in params.values()) / 1e6, 1) == millions
    convolution = params["model.body.3.path.0.weight"]
    assert float(convolution.std()) == pytest.approx((2 / 1.01 / (9 * widths[3])) ** 0.5, rel=0.01)


@pytest.mark.parametrize("vectorize", ["loop", "vmap"])
@pytest.mark.parametrize("normalization", ["transductive", "inductive"])
def test_meta_gradients_are_those_of_a_double_backward(normalization, vectorize):
    spec = classification_spec(3, 16, 3)
    model, params = built(spec, widths=NARROW, drop=0.0, normalization=normalization)
    tasks = random_episodes(spec, 2)
    found = MAML(0.1, 2).meta_gradient(model, params, tasks, context_of(2), Engine(vectorize)).grads
    expected = naive_maml(params, tasks, 0.1, 2, normalization == "inductive")
    scale = max(float(value.abs().max()) for value in expected.values())
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-9 * scale


@pytest.mark.parametrize("algorithm", [MAML(0.1, 2), ProtoNet()], ids=["maml", "protonet"])
def test_what_is_dropped_replays_and_is_the_same_under_vmap(algorithm):
    spec = classification_spec(3, 32, 1)
    model, params = built(spec, widths=NARROW, drop=0.3, drop_block=2)
    params = {name: params[name] for name in algorithm.init(model, spec, 0)}

    def gradient(noise, vectorize):
        tasks = random_episodes(spec, 2)
        return algorithm.meta_gradient(model, params, tasks, context_of(2, noise), Engine(vectorize)).grads

    one, again, other, lifted = gradient(5, "loop"), gradient(5, "loop"), gradient(6, "loop"), gradient(5, "vmap")
    scale = max(float(value.abs().max()) for value in one.values())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) > 1e-2 * scale
    assert max(float((one[name] - lifted[name]).abs().max()) for name in one) < 1e-9 * scale


def test_without_normalisation_the_convolutions_have_biases():
    spec = classification_spec(3, 16, 3)
    model = build_model(ResNet12(NARROW, normalization="none"), spec, 0)
    biases = [name for name in model.initial(head=False) if name.endswith("bias")]
    assert (len(biases), model.normalization) == (16, "none")
    assert len(model.initial(head=False)) == 32


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (3, 15, 84), "model.name: .*leaves nothing of 15×84: use images of 16×16"),
        ({}, (784,), "model.name: resnet12 reads images .* set mlp"),
        ({"widths": (64, 128, 256)}, (3, 84, 84), "model.widths: 3 numbers for four blocks"),
        ({"widths": (64, 128, 256, 0)}, (3, 84, 84), "model.widths: 0 is not a positive number"),
        ({"drop": 1.0}, (3, 84, 84), "model.drop: 1 is no probability"),
        ({"drop_block": 0}, (3, 84, 84), "model.drop_block: 0 is not a positive number"),
    ],
)
def test_what_it_cannot_be_is_refused_with_the_remedy(settings, shape, message):
    with pytest.raises(ValueError, match=message):
        build_model(ResNet12(**settings), classification_spec()._replace(x=shape), 0)
