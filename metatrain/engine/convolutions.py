"""Compute convolutions on CPUs in a form whose derivatives of every order are fast.

torch's second derivatives of a convolution are convolutions with filters as large as images, in a memory format that
is copied at every call. Here a convolution of small images is one matrix product with their patches; one of large
images is one of three bilinear maps that are each other's derivatives. Networks need not know: `FastConvolutions`
replaces torch's function while a stage is traced.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from metatrain.engine.operations import Window, convolve, convolve_to_w, convolve_to_x, fold, unfold

_MOST_IN_PATCHES = 4_000_000
"""Numbers in the patches of a batch, 16 MB of a cache, from which on writing them costs more than it saves."""


class FastConvolutions(TorchFunctionMode):
    """Compute the convolutions of images within this context by `convolution`, in any network."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (convolution if func is torch.conv2d else func)(*args, **(kwargs or {}))


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Compute what torch.conv2d does. x: [n, C, H, W], weight: [O, C / groups, kH, kW] -> [n, O, rows, columns].

    Images without a batch, paddings "same", and bfloat16 are left to torch.
    """
    padding = 0 if padding == "valid" else padding
    if x.dim() != 4 or isinstance(padding, str) or torch.is_autocast_enabled("cpu"):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    kernel = weight.shape[2], weight.shape[3]
    window = Window(kernel, _pair(stride), _pair(padding), _pair(dilation))
    images, filters = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
    rows, columns = window.outputs(x.shape[2], x.shape[3])
    if groups == 1 and _is_small(x, window, rows * columns):
        patches = _patches(images, window)
        found = (patches @ filters.reshape(len(filters), -1).t()).view(len(x), rows, columns, len(filters))
    else:
        found = _Convolve.apply(images, filters, _Call(window, groups))
    if bias is not None:
        found = found + bias
    return found.permute(0, 3, 1, 2)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _is_small(x: Tensor, window: Window, positions: int) -> bool:
    return _reads_pixels(window) or len(x) * x.shape[1] * positions * math.prod(window.kernel) <= _MOST_IN_PATCHES


def _reads_pixels(window: Window) -> bool:
    """Return whether a patch is one pixel, so that patches are no copies."""
    return window.kernel == (1, 1) and window.padding == (0, 0)


def _patches(images: Tensor, window: Window) -> Tensor:
    """Return [n·rows·columns, kH·kW·C] of images [n, H, W, C]."""
    if _reads_pixels(window):
        down, right = window.stride
        return images[:, ::down, ::right].reshape(-1, images.shape[3])
    found: Tensor = _Unfold.apply(images, _flat(window))
    return found


def _flat(window: Window) -> list[int]:
    return [size for pair in window for size in pair]


class _Unfold(Function):
    """Apply `unfold`, a linear map."""

    @staticmethod
    def forward(images: Tensor, window: list[int]) -> Tensor:
        return unfold(images.contiguous(), window)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.size, ctx.window = list(inputs[0].shape), inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Fold.apply(g, ctx.size, ctx.window), None


class _Fold(Function):
    """Apply `fold`, the transpose of `unfold`."""

    @staticmethod
    def forward(patches: Tensor, size: list[int], window: list[int]) -> Tensor:
        return fold(patches.contiguous(), size, window)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.window = inputs[2]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Unfold.apply(g, ctx.window), None, None


class _Call(NamedTuple):
    """How a convolution is called, apart from its tensors."""

    window: Window
    groups: int

    @property
    def arguments(self) -> tuple[list[int], int]:
        return _flat(self.window), self.groups


class _BilinearMap(Function):
    """Keep both factors, whose derivatives the subclasses compute."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.call = inputs[-1]


class _Convolve(_BilinearMap):
    """Compute y = x ∗ w."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, call: _Call) -> Tensor:
        return convolve(x.contiguous(), w.contiguous(), *call.arguments)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        to_x, to_w = ctx.needs_input_grad[:2]
        return (
            _ConvolveToX.apply(g, w, list(x.shape), ctx.call) if to_x else None,
            _ConvolveToW.apply(g, x, list(w.shape), ctx.call) if to_w else None,
            None,
        )


class _ConvolveToX(_BilinearMap):
    """Compute (∂y/∂x)ᵀ g."""

    @staticmethod
    def forward(g: Tensor, w: Tensor, size: list[int], call: _Call) -> Tensor:
        return convolve_to_x(g.contiguous(), w.contiguous(), size, *call.arguments)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, like_x: Tensor) -> Any:
        g, w = ctx.saved_tensors
        to_g, to_w = ctx.needs_input_grad[:2]
        return (
            _Convolve.apply(like_x, w, ctx.call) if to_g else None,
            _ConvolveToW.apply(g, like_x, list(w.shape), ctx.call) if to_w else None,
            None,
            None,
        )


class _ConvolveToW(_BilinearMap):
    """Compute (∂y/∂w)ᵀ g."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, size: list[int], call: _Call) -> Tensor:
        return convolve_to_w(g.contiguous(), x.contiguous(), size, *call.arguments)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, like_w: Tensor) -> Any:
        g, x = ctx.saved_tensors
        to_g, to_x = ctx.needs_input_grad[:2]
        return (
            _Convolve.apply(x, like_w, ctx.call) if to_g else None,
            _ConvolveToX.apply(g, like_w, list(x.shape), ctx.call) if to_x else None,
            None,
            None,
        )
