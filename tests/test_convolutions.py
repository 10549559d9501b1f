"""Test convolutions against torch's: values, first and second derivatives, in every form and size of window."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, vjp
from torch.fx.experimental.proxy_tensor import make_fx

from metatrain.engine import convolutions
from metatrain.engine.convolutions import FastConvolutions, convolution
from metatrain.engine.operations import Window

FORMS = pytest.mark.parametrize("most", [4_000_000, 0], ids=["product", "three maps"])
"""Small images are multiplied as patches; with none allowed, the three bilinear maps are used."""

CALLS = [
    pytest.param(1, 4, (3, 3), {"stride": 2, "padding": 1, "dilation": 1, "groups": 1}, id="one channel"),
    pytest.param(3, 4, (3, 3), {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}, id="as in conv4"),
    pytest.param(2, 4, (3, 3), {"stride": 2, "padding": 0, "dilation": 2, "groups": 2}, id="dilated, in groups"),
    pytest.param(4, 6, (1, 1), {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}, id="single pixels"),
    pytest.param(4, 6, (1, 1), {"stride": 2, "padding": 0, "dilation": 1, "groups": 1}, id="every second pixel"),
    pytest.param(4, 4, (3, 1), {"stride": (2, 1), "padding": (1, 0), "dilation": 1, "groups": 1}, id="not square"),
    pytest.param(4, 4, (3, 3), {"stride": 1, "padding": 1, "dilation": 1, "groups": 4}, id="depthwise"),
    pytest.param(2, 3, (2, 2), {"stride": 3, "padding": 0, "dilation": 1, "groups": 1}, id="pixels that none sees"),
]


@FORMS
@pytest.mark.parametrize(("inputs", "outputs", "kernel", "call"), CALLS)
def test_values_and_derivatives_of_both_orders(monkeypatch, most, inputs, outputs, kernel, call):
    monkeypatch.setattr(convolutions, "_MOST_IN_PATCHES", most)
    x = torch.randn(3, inputs, 7, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(outputs, inputs // call["groups"], *kernel, dtype=torch.float64, requires_grad=True)
    b = torch.randn(outputs, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(convolution(x, w, b, **call), torch.conv2d(x, w, b, **call), rtol=1e-12, atol=1e-12)

    def convolved(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return convolution(x, w, b, **call)

    assert torch.autograd.gradcheck(convolved, (x, w, b))
    assert torch.autograd.gradgradcheck(convolved, (x, w, b))


@FORMS
def test_a_gradient_through_an_inner_step_equals_the_one_by_torch(monkeypatch, most):
    monkeypatch.setattr(convolutions, "_MOST_IN_PATCHES", most)
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(torch.conv2d(x, w, padding=1).tanh(), w.transpose(0, 1), stride=2).square().mean()

    def after_a_step(w: torch.Tensor) -> torch.Tensor:
        return loss(w - 0.3 * grad(loss)(w))

    def through(w: torch.Tensor) -> torch.Tensor:
        value, pull = vjp(after_a_step, w)
        return pull(torch.ones_like(value))[0]

    expected = through(w)
    with FastConvolutions():
        graph = make_fx(through)(w)
    assert not any("aten.convolution" in str(node.target) for node in graph.graph.nodes)
    assert torch.allclose(graph(w), expected, rtol=1e-10, atol=1e-12)


def test_modules_use_it_and_other_dimensions_stay_with_torch():
    x = torch.randn(2, 3, 9, 9)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding="valid"), nn.Conv2d(4, 4, 3, padding="same"))
    line = nn.Conv1d(3, 4, 3)
    with torch.no_grad():
        expected = network(x), network(x[0]), line(x[:, :, 0])
        with FastConvolutions():
            found = network(x), network(x[0]), line(x[:, :, 0])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert network(x).dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@given(
    size=st.integers(1, 30),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
)
@settings(deadline=None)
def test_the_number_of_positions(size, kernel, stride, padding, dilation):
    fits = [at for at in range(-padding, size + padding) if at + dilation * (kernel - 1) < size + padding]
    window = Window((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
    if fits:
        assert window.outputs(size, 1) == (len(fits[::stride]), 1)
