"""Test activation checkpointing: the same gradients of every order from less memory, or a refusal."""

import dataclasses
import re

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

from benchmarks.peak import peak_bytes
from metatrain.algorithms import ALGORITHMS
from metatrain.engine import Engine, checkpoint_blocks, checkpointed
from metatrain.models import MLP, Conv4, Dropout, Model, ResNet12, TaskNorm, Torchvision, build_model
from metatrain.training.worker import Worker
from metatrain.types import MetaGradient, Shard, ShardRequest
from tests.configurations import tiny
from tests.episodes import classification_spec, context_of, random_episodes

TOLERANCE = 1e-12
CPU = torch.device("cpu")


class Own(nn.Module):
    """A module of a user's, whose sequence is one of its parts."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(2, 4, 3, padding=1), TaskNorm(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.drop = Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.layers(x)).mean((2, 3)) + x.mean()


@dataclasses.dataclass(frozen=True)
class Owner:
    head: str = "added"

    def build(self, spec: object) -> nn.Module:
        return Own()


NETWORKS = {
    "mlp": (MLP(6, 3), 4, 2, 3),
    "conv4": (Conv4(width=4, depth=3), 10, 2, 3),
    "conv4, inductive": (Conv4(width=4, depth=3, normalization="inductive"), 10, 2, 3),
    "resnet12": (ResNet12((3, 4, 5, 6), drop=0.3, drop_block=2), 16, 2, 4),
    "resnet12, inductive": (ResNet12((3, 4, 5, 6), drop=0.3, normalization="inductive"), 16, 2, 4),
    "a user's": (Owner(), 10, 2, 2),
}
"""By name: the architecture, the size and channels of its images, and the number of its blocks."""
METHODS = {"maml": {"inner_steps": 2, "inner_lr": 0.1}, "fomaml": {"inner_steps": 2, "inner_lr": 0.1}, "protonet": {}}


def built(network: str) -> Model:
    architecture, size, channels, _ = NETWORKS[network]
    return build_model(architecture, classification_spec(3, size, channels), seed=1).to(CPU, torch.float64)


def gradient_of(model: Model, method: str, vectorize: str, tasks: int = 2) -> MetaGradient:
    algorithm = ALGORITHMS[method](**METHODS[method])
    params = {key: value.double() for key, value in algorithm.init(model, model.spec, 1).items()}
    episodes = random_episodes(model.spec, tasks)
    return algorithm.meta_gradient(model, params, episodes, context_of(tasks, noise=5), Engine(vectorize))


@pytest.mark.parametrize("vectorize", ["loop", "vmap"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_are_those_without_checkpoints(network, method, vectorize):
    model = built(network)
    expected = gradient_of(model, method, vectorize)
    assert checkpoint_blocks(model.body, "it") == NETWORKS[network][3]
    found = gradient_of(model, method, vectorize)
    scale = max(float(value.abs().max()) for value in expected.grads.values())
    assert scale > 0
    for name, value in expected.grads.items():
        torch.testing.assert_close(found.grads[name], value, rtol=0, atol=TOLERANCE * scale)
    assert found.metrics.keys() == expected.metrics.keys()
    assert all(torch.equal(found.metrics[name], value) for name, value in expected.metrics.items())


def test_masks_are_those_of_the_task_when_a_block_is_computed_again():
    model = built("resnet12")
    checkpoint_blocks(model.body, "it")
    algorithm, episodes = ALGORITHMS["maml"](**METHODS["maml"]), random_episodes(model.spec, 2)
    params = {key: value.double() for key, value in model.initial().items()}
    one, other, again = (
        algorithm.meta_gradient(model, params, episodes, context_of(2, noise=key), Engine("loop")).grads
        for key in (5, 6, 5)
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(("classifier", "blocks"), [("resnet18", 8), ("vgg11", 10), ("mobilenet_v2", 19)])
def test_classifiers_of_torchvision_have_blocks(classifier, blocks):
    spec = classification_spec(3, 64 if classifier != "vgg11" else 32, 3)
    model = build_model(Torchvision(classifier), spec, 0)
    expected = model.body(torch.rand(2, *spec.x, generator=torch.Generator().manual_seed(0)))
    assert checkpoint_blocks(model.body, classifier) == blocks
    found = model.body(torch.rand(2, *spec.x, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(found, expected)


def test_derivatives_of_every_order_under_every_transform():
    a, b = torch.randn(3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def plain(x, y):
        return (torch.sin(x) * y).cumsum(0), (x * y).exp()

    def loss(function, x, y):
        one, two = function(x, y)
        return (one * two.sum()).sum()

    def again(x, y):
        return checkpointed(plain, x, y)

    for derivative in (grad, lambda f: grad(lambda *xy: grad(f)(*xy).sin().sum()), lambda f: jacrev(jacrev(f, 1))):
        expected, found = (
            vmap(derivative(lambda x, y, f=f: loss(f, x, y)), in_dims=(None, 0))(a, b) for f in (plain, again)
        )
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", ["maml", "protonet"])
def test_memory_grows_less_by_the_depth_of_the_network(method):
    """By the inputs of blocks, of which there are two or three other tensors of the same size."""

    def peak(depth: int, checkpoints: bool) -> int:
        architecture = Conv4(width=8, depth=depth, halvings=0)
        model = build_model(architecture, classification_spec(3, 16, 2), seed=1).to(CPU, torch.float64)
        if checkpoints:
            assert checkpoint_blocks(model.body, "it") == depth
        return peak_bytes(lambda: gradient_of(model, method, "loop", tasks=1))

    plain, less = (peak(16, checkpoints) - peak(8, checkpoints) for checkpoints in (False, True))
    assert 0 < less < 0.6 * plain


def test_a_worker_checkpoints_if_asked_to():
    shard, request = Shard(0, (0, 1)), ShardRequest("gradient", "train", 0)
    found = {}
    for setting in ("off", "on"):
        worker = Worker(tiny(f"engine.activation_checkpointing={setting}"), CPU)
        assert ("forward" in vars(worker.model.body)) == (setting == "on")
        found[setting] = worker.gradient(request, worker.to_device(worker.initial()), shard).grads
    for name, value in found["off"].items():
        torch.testing.assert_close(found["on"][name], value, rtol=1e-4, atol=1e-6)


def test_compilation_is_off_where_it_would_be_on():
    many = ("outer.steps=100000", "engine.vectorize=vmap")
    assert Worker(tiny(*many, "engine.activation_checkpointing=on"), CPU).engine.compile is False


def test_what_has_no_effect_is_refused():
    with pytest.raises(ValueError, match=re.escape("no effect with engine.compile=on: compiled code chooses")):
        tiny("engine.activation_checkpointing=on", "engine.compile=on")
    few = "engine.activation_checkpointing: mlp has no nn.Sequential of two or more layers with weights"
    with pytest.raises(ValueError, match=re.escape(few)):
        Worker(tiny("model={name: mlp, width: 4, depth: 1}", "engine.activation_checkpointing=on"), CPU)
