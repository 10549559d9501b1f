"""Rewrite traced graphs for CPUs, where inductor leaves time on the table: the same values up to rounding."""

import torch
from torch import fx

from metatrain.engine.operations import materialize, matmul

_FEWEST_PRODUCTS = 100_000
"""Multiplications in a product of matrices from which on a call of oneDNN repays what it costs."""
_SMALL = 4096
"""Numbers in a tensor up to which storing it costs next to nothing."""

aten = torch.ops.aten


def rewrite_for_cpu(graph: fx.GraphModule) -> None:
    """Apply all passes of this module to `graph`, whose nodes have the `meta` of `make_fx`."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function":
            _use_onednn(node)
            _multiply_by_reciprocal(node)
            _store_roots(node)
    graph.recompile()


def _use_onednn(node: fx.Node) -> None:
    """Give large products of float32 matrices to oneDNN."""
    if node.target is not aten.mm.default or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    a, b = (factor.meta["val"] for factor in node.all_input_nodes * (3 - len(node.all_input_nodes)))
    if a.dtype == torch.float32 and a.shape[0] * a.shape[1] * b.shape[1] >= _FEWEST_PRODUCTS:
        node.target = matmul


def _multiply_by_reciprocal(node: fx.Node) -> None:
    """Replace division by a constant, which takes a processor four times as long as multiplication."""
    if node.target not in (aten.div.Tensor, aten.div.Scalar) or not isinstance(node.args[1], int | float):
        return
    if node.meta["val"].is_floating_point() and node.args[1]:
        node.target, node.args = aten.mul.Tensor, (node.args[0], 1.0 / node.args[1])


def _store_roots(node: fx.Node) -> None:
    """Store 1/√x of small tensors, such as variances of channels, which inductor computes anew for every pixel."""
    if node.target is aten.rsqrt.default and node.meta["val"].numel() <= _SMALL:
        with node.graph.inserting_after(node):
            stored = node.graph.call_function(materialize, (node,))
        stored.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(stored, delete_user_cb=lambda user: user is not stored)
