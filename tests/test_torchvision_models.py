"""Test torchvision's classifiers: equal to torchvision's own outputs, and twice differentiable."""

import sys

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.ops import StochasticDepth

from metatrain.algorithms import MAML
from metatrain.engine import Engine
from metatrain.models import Torchvision, build_model
from metatrain.models.layers import Attention, HardSigmoid
from tests.episodes import classification_spec, context_of, random_episodes

NO_NOISE = torch.tensor(-1)
CPU = torch.device("cpu")
SPEC = classification_spec(ways=3, size=64, channels=3)

FAMILIES = [
    ("resnet18", "transductive"),
    ("mobilenet_v2", "transductive"),
    ("mobilenet_v3_small", "transductive"),
    ("densenet121", "transductive"),
    ("regnet_x_400mf", "transductive"),
    ("googlenet", "transductive"),
    ("convnext_tiny", "none"),
    ("swin_t", "none"),
    ("vit_b_16", "none"),
    ("squeezenet1_1", "none"),
]
LARGE = ("convnext_tiny", "vit_b_16")
"""Those that take seconds: `make test-slow` has them, and `make test` smaller ones of their kinds."""


def torchvisions_own(classifier: str) -> nn.Module:
    """As torchvision builds it from the same seed, in training, though without what is random."""
    settings = {"vit_b_16": {"image_size": 64}, "googlenet": {"aux_logits": False, "init_weights": True}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        whole = models.get_model(classifier, weights=None, num_classes=3, **settings.get(classifier, {})).train()
    for module in whole.modules():
        if isinstance(module, (nn.Dropout, StochasticDepth)):
            module.eval()
    return whole.double()


@pytest.mark.parametrize(
    ("classifier", "normalization"),
    [pytest.param(*row, id=row[0], marks=[pytest.mark.slow] * (row[0] in LARGE)) for row in FAMILIES],
)
def test_predicts_what_torchvisions_own_does(classifier, normalization):
    model = build_model(Torchvision(classifier), SPEC, seed=1).to(CPU, torch.float64)
    params = {name: value.double() for name, value in model.initial().items()}
    x = torch.rand(4, *SPEC.x, dtype=torch.float64)
    with torch.no_grad():
        found, embedded = model.predict(params, x, NO_NOISE), model.embed(params, x, NO_NOISE)
        assert torch.allclose(found, torchvisions_own(classifier)(x), rtol=1e-6, atol=1e-8)
    assert model.normalization == normalization
    if classifier.startswith("squeezenet"):
        assert torch.equal(found, embedded), "it ends in a convolution: no head apart"
    else:
        assert embedded.shape == (4, params["model.head.weight"].shape[1])
        assert {name for name in params if name.startswith("model.head.")} == {"model.head.weight", "model.head.bias"}


@pytest.mark.parametrize("classifier", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_meta_gradients_of_second_order_are_finite_and_vmap_gives_the_same(classifier):
    spec = SPEC._replace(ways=2)
    model = build_model(Torchvision(classifier), spec, seed=1).to(CPU, torch.float64)
    params = {name: value.double() for name, value in model.initial().items()}
    tasks = random_episodes(spec, 2, shots=1, queries=1)
    looped, lifted = (
        MAML(0.01, 1).meta_gradient(model, params, tasks, context_of(2, noise=3), Engine(vectorize)).grads
        for vectorize in ("loop", "vmap")
    )
    scale = max(float(value.abs().max()) for value in looped.values())
    assert 0 < scale < float("inf")
    assert max(float((looped[name] - lifted[name]).abs().max()) for name in looped) < 1e-7 * scale


def test_second_derivatives_go_through_attention():
    """Through torch's own they do not: "derivative for aten::_scaled_dot_product_flash_attention… not implemented"."""
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(6, 2, batch_first=True).double()
    nn.init.normal_(fused.in_proj_bias)
    ours, x = Attention(fused), torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(ours(x, x, x)[0], fused(x, x, x, need_weights=False)[0], rtol=1e-12)
    assert torch.autograd.gradgradcheck(lambda x: ours(x, x, x)[0].tanh(), x)


@pytest.mark.slow
def test_second_derivatives_go_through_a_vision_transformer():
    spec = classification_spec(ways=2, size=16, channels=3)
    model = build_model(Torchvision("vit_b_16"), spec, seed=1)
    tasks = random_episodes(spec, 1, shots=1, queries=1, dtype=torch.float32)
    params = model.initial()
    # torchvision begins with a head of zeros, through which nothing would come back to the layers before it.
    params["model.head.weight"] = torch.full_like(params["model.head.weight"], 0.01)
    found = MAML(0.01, 1).meta_gradient(model, params, tasks, context_of(1), Engine("loop")).grads
    assert all(torch.isfinite(value).all() for value in found.values())
    assert found["model.body.trunk.encoder.layers.encoder_layer_0.self_attention.in_proj_weight"].any()


def test_the_hard_sigmoid_is_torchs_with_a_second_derivative():
    x = torch.linspace(-5, 5, 40, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(HardSigmoid()(x), nn.Hardsigmoid()(x), rtol=1e-12)
    assert torch.autograd.gradgradcheck(lambda x: HardSigmoid()(x) ** 2, x)


def test_its_dropout_is_addressed():
    model = build_model(Torchvision("mobilenet_v2"), SPEC, seed=1)
    params, x = model.initial(), torch.rand(4, *SPEC.x)
    one, again, other = (model.embed(params, x, torch.tensor(key)) for key in (11, 11, 12))
    assert torch.equal(one, again)
    silent = model.embed(params, x, NO_NOISE) != 0
    dropped = ((one == 0) & silent).sum() / silent.sum()
    assert 0.15 < dropped < 0.25, "its rate is 0.2"
    assert not torch.equal(one == 0, other == 0)


def test_inductive_queries_do_not_touch_each_other():
    support, query = torch.rand(5, *SPEC.x), torch.rand(6, *SPEC.x)
    for normalization, independent in (("inductive", True), ("transductive", False)):
        model = build_model(Torchvision("resnet18", normalization), SPEC, seed=0)
        params = model.initial()
        together = model.predict(params, query, NO_NOISE, reference=support)
        alone = model.predict(params, query[:2], NO_NOISE, reference=support)
        assert torch.allclose(together[:2], alone, atol=1e-4) == independent


def test_regression_has_an_output_for_each_value():
    spec = SPEC._replace(kind="regression", ways=None, y=(2, 2))
    model = build_model(Torchvision("squeezenet1_1"), spec, seed=0)
    assert model.predict(model.initial(), torch.rand(5, *SPEC.x), NO_NOISE).shape == (5, 2, 2)


@pytest.mark.parametrize(
    ("classifier", "shape", "message"),
    [
        ("resnet19", (3, 64, 64), r"model.classifier: no 'resnet19' \(did you mean resnet1\d\?\): choose"),
        ("?", (3, 64, 64), r"model.classifier: no '\?': choose a classifier of torchvision.models"),
        ("resnet18", (1, 28, 28), "model.classifier: resnet18 reads colour images .* set model.name to resnet12"),
        ("resnet18", (12,), "model.name: torchvision reads images .* set mlp"),
        ("squeezenet1_1", (3, 8, 8), r"squeezenet1_1 cannot read images of 8×8 \(.*too small\): use another size"),
        ("vit_b_16", (3, 20, 20), r"vit_b_16 cannot read images of 20×20 \(Input shape indivisible by patch size\)"),
        ("vit_b_16", (3, 16, 32), r"vit_b_16 cannot read images of 16×32 \(Wrong image width"),
        ("swin_v2_t", (3, 84, 84), "swin_v2_t pads images of 84×84.* use 256×256, or set swin_t"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(classifier, shape, message):
    with pytest.raises(ValueError, match=message) as refused:
        build_model(Torchvision(classifier), SPEC._replace(x=shape), 0)
    assert "\n" not in str(refused.value)


def test_without_torchvision_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match=r"torchvision is not installed: pip install torchvision"):
        Torchvision("resnet18")
