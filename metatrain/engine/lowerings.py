"""Tell inductor how `operations` are computed, so that the C++ program of a stage calls torch's kernels itself.

Without, it calls Python for each of these operations, some three hundred times a task. `x`, `a` and so on are what
inductor has in place of tensors.
"""

import functools
import hashlib
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from metatrain.engine import operations
from metatrain.engine.operations import (
    fold,
    is_transposed,
    materialize,
    matmul,
    places,
    places_transposed,
    sum_rows,
    unfold,
    unfolded_shape,
)


@functools.cache
def register_lowerings() -> str:
    """Register this module's lowerings with inductor, once per process; return a key of what they are."""
    lowered = {matmul: _lower_matmul, materialize: _lower_materialize, unfold: _lower_unfold, fold: _lower_fold}
    for operation, lower in lowered.items():
        _inductor().lowering.register_lowering(operation, type_promotion_kind=None)(lower)
    sources = (Path(module).read_bytes() for module in (__file__, operations.__file__))
    return hashlib.sha256(b"".join(sources)).hexdigest()


@functools.cache
def _inductor() -> Any:
    """Return inductor's modules, which take two seconds to import."""
    names = ("ir", "lowering", "mkldnn_ir", "virtualized")
    return SimpleNamespace(**{name: importlib.import_module(f"torch._inductor.{name}") for name in names})


def _lower_matmul(a: Any, b: Any) -> Any:
    """Lower to a product of oneDNN's: the same as `operations.matmul`, with the copies fused into what is before."""
    factor = _inductor().virtualized.V.graph.current_node.args[0].meta["val"]
    if is_transposed(factor) and a.get_numel() > b.get_numel():
        return _transpose(_product(_transpose(b), a))
    return _product(a, _transpose(b))


def _product(x: Any, w: Any) -> Any:
    """Return x wᵀ. x is copied if it is not laid out in rows; w may have either layout."""
    ir, mkldnn_ir = _inductor().ir, _inductor().mkldnn_ir
    x, w = _in_rows(x), ir.ExternKernel.realize_input(w)
    layout = ir.FixedLayout(x.get_device(), x.get_dtype(), [x.get_size()[0], w.get_size()[0]])
    call = mkldnn_ir.LinearUnary(layout, [x, w], [None, "none", [-1], ""])
    return ir.TensorBox.create(mkldnn_ir._create_output_node(call))


def _lower_materialize(x: Any) -> Any:
    x.realize()
    return x


def _lower_unfold(x: Any, window: list[int]) -> Any:
    size = [int(length) for length in x.get_size()]
    rows = _gather(x, size[3], places(tuple(size[:3]), tuple(window)))
    return _view(rows, list(unfolded_shape(size, window)))


def _lower_fold(patches: Any, size: list[int], window: list[int]) -> Any:
    return _view(_gather(patches, size[3], places_transposed(tuple(size[:3]), tuple(window))), list(size))


def _gather(x: Any, length: int, bags: tuple[torch.Tensor, torch.Tensor]) -> Any:
    """Lower to sums of rows of `length` numbers, whose places the program holds as constants."""
    indices, offsets = map(_constant, bags)
    compute = _inductor().lowering.fallback_handler(sum_rows, add_to_fallback_set=False)
    return compute(_in_rows(_view(x, [-1, length])), indices, offsets, False, 0, False, None, True, -1)[0]


def _constant(value: torch.Tensor) -> Any:
    """Return a constant of the program as a view: of constants themselves inductor expects that they are fake."""
    ir = _inductor().ir
    held = _inductor().virtualized.V.graph.add_tensor_constant(value).data
    return ir.TensorBox(ir.ReinterpretView(data=ir.StorageBox(getattr(held, "data", held)), layout=held.get_layout()))


def _in_rows(x: Any) -> Any:
    kernel = _inductor().ir.ExternKernel
    return kernel.require_contiguous(kernel.realize_input(x))


def _view(x: Any, size: list[int]) -> Any:
    return _inductor().lowering.view(x, size)


def _transpose(x: Any) -> Any:
    return _inductor().lowering.permute(x, [1, 0])
