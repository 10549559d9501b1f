"""Define the operations that compiled stages on CPUs are made of: patches, their transpose, products, convolutions.

Each is opaque to the compiler, which fuses what is between them. Images and filters are laid out channels last:
x [n, H, W, C], w [O, kH, kW, C].
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Sizes = tuple[int, int]


class Window(NamedTuple):
    """Describe how a convolution's filter moves over an image, in rows and columns."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes

    def outputs(self, height: int, width: int) -> Sizes:
        """Return the number of positions of the filter, in rows and columns."""
        rows, columns = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip((height, width), *self, strict=True)
        )
        return rows, columns


_library: Any = torch.library.Library("metatrain", "DEF")  # type: ignore[no-untyped-call]
_product = torch.ops.mkldnn._linear_pointwise.default
sum_rows = torch.ops.aten._embedding_bag_forward_only.default


def _define(schema: str, compute: Any, fake: Any) -> Any:
    """Define an operation by its schema, what it computes on CPUs, and an empty tensor of its result's layout."""
    name = schema.split("(")[0]
    _library.define(schema)
    _library.impl(name, compute, "CPU")
    _library.impl(name, fake, "Meta")
    return getattr(torch.ops.metatrain, name).default


def _unfold(x: Tensor, window: list[int]) -> Tensor:
    key = tuple(x.shape[:3]), tuple(window)
    return _gathered(_rows(x, x.shape[3]), *places(*key)).view(unfolded_shape(x.shape, window))


def _fake_unfold(x: Tensor, window: list[int]) -> Tensor:
    return x.new_empty(unfolded_shape(x.shape, window))


def _fold(patches: Tensor, size: list[int], window: list[int]) -> Tensor:
    return _gathered(_rows(patches, size[3]), *places_transposed(tuple(size[:3]), tuple(window))).view(size)


def _fake_fold(patches: Tensor, size: list[int], window: list[int]) -> Tensor:
    return patches.new_empty(size)


def _rows(x: Tensor, length: int) -> Tensor:
    return x.view(-1).view(-1, length)  # at once, the stride of a single column might not be 1, which is slow


def _gathered(rows: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    """Return Σ rows[indices[j]] over j from offsets[i] to offsets[i + 1], for each i: a sparse matrix of ones."""
    return sum_rows(rows, indices, offsets, False, 0, False, None, True, -1)[0]  # type: ignore[no-any-return]


def unfolded_shape(size: Any, flat: Any) -> Sizes:
    """Return the shape of the patches of images of `size` [n, H, W, C]: positions and the pixels that each sees."""
    window = as_window(flat)
    rows, columns = window.outputs(size[1], size[2])
    return size[0] * rows * columns, window.kernel[0] * window.kernel[1] * size[3]


@functools.lru_cache(maxsize=256)
def places(size: tuple[int, ...], window: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return, by position of the filter and tap, which pixel it sees: none beyond the image."""
    pixels, _, inside = _pairs(size, window)
    return _as_bags(pixels, inside)


@functools.lru_cache(maxsize=256)
def places_transposed(size: tuple[int, ...], window: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return, by pixel, which positions and taps see it."""
    pixels, taps, _ = _pairs(size, window)
    return _as_bags(taps[np.argsort(pixels, kind="stable")], np.bincount(pixels, minlength=size[0] * size[1] * size[2]))


def _pairs(size: tuple[int, ...], flat: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Return the numbers of pixels and of taps that see them, as pairs, and which taps see a pixel at all."""
    images, height, width = size
    window = as_window(flat)
    rows, columns = window.outputs(height, width)

    def seen(positions: int, along: int) -> Any:
        starts = np.arange(positions) * window.stride[along] - window.padding[along]
        return starts[:, None] + np.arange(window.kernel[along]) * window.dilation[along]

    y = seen(rows, 0)[None, :, None, :, None]
    x = seen(columns, 1)[None, None, :, None, :]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    pixels = (np.arange(images).reshape(-1, 1, 1, 1, 1) * height + y) * width + x
    inside = np.broadcast_to(inside, pixels.shape).ravel()
    return pixels.ravel()[inside], inside.nonzero()[0], inside


def _as_bags(indices: Any, counts: Any) -> tuple[Tensor, Tensor]:
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return torch.from_numpy(indices.astype(np.int32)), torch.from_numpy(offsets.astype(np.int32))


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Compute a b by oneDNN, which has kernels for AVX-512 on every CPU; MKL has them on those of its maker."""
    if is_transposed(a):
        if a.numel() > b.numel():  # oneDNN reads its second factor in either layout, and copies the first
            return _product(b.t().contiguous(), a, None, "none", [], "").t()  # type: ignore[no-any-return]
        a = a.contiguous()
    return _product(a, b.t(), None, "none", [], "")  # type: ignore[no-any-return]


def _fake_matmul(a: Tensor, b: Tensor) -> Tensor:
    if is_transposed(a) and a.numel() > b.numel():
        return a.new_empty(b.shape[1], a.shape[0]).t()
    return a.new_empty(a.shape[0], b.shape[1])


def is_transposed(a: Tensor) -> bool:
    """Return whether a matrix is laid out by columns."""
    return a.stride(0) == 1 and a.stride(1) > 1


def as_window(flat: Any) -> Window:
    """Return the window of eight numbers: kernel, stride, padding, dilation."""
    return Window(*(tuple(flat[i : i + 2]) for i in range(0, 8, 2)))


def _convolve(x: Tensor, w: Tensor, window: list[int], groups: int) -> Tensor:
    _, stride, padding, dilation = as_window(window)
    found = torch.conv2d(_planes(x), _planes(w), None, stride, padding, dilation, groups)
    return _pixels(found)


def _fake_convolve(x: Tensor, w: Tensor, window: list[int], groups: int) -> Tensor:
    return x.new_empty(x.shape[0], *as_window(window).outputs(x.shape[1], x.shape[2]), w.shape[0])


def _convolve_to_x(g: Tensor, w: Tensor, size: list[int], window: list[int], groups: int) -> Tensor:
    return _convolution_backward(g, g.new_empty(size), w, window, groups, 0)


def _convolve_to_w(g: Tensor, x: Tensor, size: list[int], window: list[int], groups: int) -> Tensor:
    return _convolution_backward(g, x, g.new_empty(size), window, groups, 1)


def _fake_gradient(a: Tensor, b: Tensor, size: list[int], window: list[int], groups: int) -> Tensor:
    return a.new_empty(size)


def _convolution_backward(g: Tensor, x: Tensor, w: Tensor, window: list[int], groups: int, wanted: int) -> Tensor:
    _, stride, padding, dilation = as_window(window)
    mask = [wanted == 0, wanted == 1, False]
    found = torch.ops.aten.convolution_backward(
        _planes(g), _planes(x), _planes(w), None, stride, padding, dilation, False, (0, 0), groups, mask
    )
    return _pixels(found[wanted])


def _planes(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _pixels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


unfold = _define("unfold(Tensor x, int[] window) -> Tensor", _unfold, _fake_unfold)
"""x [n, H, W, C] -> the patch of pixels below each position of the filter [n·rows·columns, kH·kW·C]"""
fold = _define("fold(Tensor patches, int[] size, int[] window) -> Tensor", _fold, _fake_fold)
"""The transpose of `unfold`: to each pixel the sum of its values in all patches."""
matmul = _define("matmul(Tensor a, Tensor b) -> Tensor", _matmul, _fake_matmul)
materialize = _define("materialize(Tensor x) -> Tensor", torch.Tensor.clone, torch.Tensor.clone)
"""x itself, stored: the compiler cannot compute it anew wherever it is used."""
convolve = _define("convolve(Tensor x, Tensor w, int[] window, int groups) -> Tensor", _convolve, _fake_convolve)
_gradient = "(Tensor g, Tensor other, int[] size, int[] window, int groups) -> Tensor"
convolve_to_x = _define(f"convolve_to_x{_gradient}", _convolve_to_x, _fake_gradient)
"""The transpose of `convolve` for fixed w: g [n, rows, columns, O] -> [n, H, W, C]"""
convolve_to_w = _define(f"convolve_to_w{_gradient}", _convolve_to_w, _fake_gradient)
"""The transpose of `convolve` for fixed x: g [n, rows, columns, O] -> [O, kH, kW, C]"""
