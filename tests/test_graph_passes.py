"""Test the rewriting of traced graphs, and the product that it calls."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from metatrain.engine.graph_passes import rewrite_for_cpu
from metatrain.engine.operations import matmul


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(50, 80, 30), (80, 50, 30), (9, 200, 64), (64, 200, 1), (1, 300, 400)])
def test_products_by_onednn(shape, transposed):
    rows, inner, columns = shape
    a = torch.randn(inner, rows).t() if transposed[0] else torch.randn(rows, inner)
    b = torch.randn(columns, inner).t() if transposed[1] else torch.randn(inner, columns)
    found = matmul(a, b)
    assert torch.allclose(found, a @ b, rtol=1e-4, atol=1e-3)
    assert found.stride() == matmul(a.to("meta"), b.to("meta")).stride(), "the compiler relies on the strides foretold"


def rewritten(function, *inputs: torch.Tensor) -> torch.fx.GraphModule:
    graph = make_fx(function)(*inputs)
    rewrite_for_cpu(graph)
    return graph


def targets(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("rows", "dtype", "expected"),
    [
        (64, torch.float32, "metatrain.matmul.default"),
        (2, torch.float32, "aten.mm.default"),
        (64, torch.float64, "aten.mm.default"),
    ],
)
def test_only_large_products_of_float32_go_to_onednn(rows, dtype, expected):
    a, b = torch.ones(rows, 64, dtype=dtype), torch.ones(64, 64, dtype=dtype)
    graph = rewritten(torch.mm, a, b)
    assert targets(graph) == [expected]
    assert torch.equal(graph(a, b), a @ b)
    square = rewritten(lambda a: a @ a, b)
    assert torch.equal(square(b), b @ b), "a matrix times itself has one input"


def test_division_by_a_constant_becomes_multiplication():
    x = torch.randn(5, dtype=torch.float64)
    graph = rewritten(lambda x: x / 3 + 1 / x + torch.arange(5) // 2, x)
    assert targets(graph).count("aten.div.Tensor") == 0
    assert torch.allclose(graph(x), x / 3 + 1 / x + torch.arange(5) // 2, rtol=1e-15)
    assert torch.isinf(rewritten(lambda x: x / 0, x)(x)).all()


def test_roots_of_small_tensors_are_stored():
    small, large = torch.rand(8) + 1, torch.rand(5000) + 1
    graph = rewritten(lambda x, y: (x.rsqrt() * x, y.rsqrt()), small, large)
    assert targets(graph).count("metatrain.materialize.default") == 1
    found = graph(small, large)
    assert torch.equal(found[0], small.rsqrt() * small)
    assert torch.equal(found[1], large.rsqrt())
