"""Corrupt images by name and severity, for tests out of distribution: noise, blur, contrast and other shifts.

Names and amounts are those of ImageNet-C (Hendrycks & Dietterich 2019), of blur those of its CIFAR-10-C in proportion
to the side of an image; `invert` and `grey` are shifts of the whole domain, and have one severity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from tasks.random import Integers, normals, stream, uniforms
from tasks.transformed import TransformedSource, moments_of, resize
from tasks.types import Shape

SEVERITIES = 5
_MOST_MEMBERS = 2**24
"""Images of a class, for an address of each."""
_CHUNK = 32
"""Images corrupted at once: the numbers that noise is made of take twenty times the memory of an image."""
_SIDE = 32
"""Side in pixels of the images of CIFAR-10-C, whose blur is taken: that of ImageNet-C is too weak for small images."""

Numbers = Callable[[int], Tensor]
Function = Callable[[Tensor, Numbers, float], Tensor]
"""(images [n, C, H, W] in [0, 1], numbers(k) -> uniforms [n, k, C·H·W] of each image, amount) -> images."""


def _gaussian_noise(x: Tensor, numbers: Numbers, amount: float) -> Tensor:
    u, v = numbers(2).numpy().swapaxes(0, 1)
    return x + amount * torch.from_numpy(normals(u, v)[0]).to(x.dtype).view_as(x)


def _shot_noise(x: Tensor, numbers: Numbers, amount: float) -> Tensor:
    """Return counts of photons, of mean x · amount, by their normal approximation."""
    u, v = numbers(2).numpy().swapaxes(0, 1)
    noise = torch.from_numpy(normals(u, v)[0]).to(x.dtype).view_as(x)
    return ((x * amount + (x * amount).sqrt() * noise).round() / amount).clamp(min=0)


def _impulse_noise(x: Tensor, numbers: Numbers, amount: float) -> Tensor:
    """Return x with a share `amount` of values black or white."""
    which, white = numbers(2).to(x.dtype).unbind(1)
    return torch.where(which.view_as(x) < amount, (white.view_as(x) < 0.5).to(x.dtype), x)


def _gaussian_blur(x: Tensor, numbers: Numbers, amount: float) -> Tensor:
    """Return x blurred along columns and rows. By sums of shifts: a convolution's bits depend on the batch."""
    sigma = amount * x.shape[-1] / _SIDE
    reach = max(1, round(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights: list[float] = (kernel / kernel.sum()).tolist()
    for axis, margin in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        side, wide = x.shape[axis], pad(x, margin, mode="replicate")
        x = weights[0] * wide.narrow(axis, 0, side)
        for at, weight in enumerate(weights[1:], start=1):
            x = x + weight * wide.narrow(axis, at, side)
    return x


def _brightness(x: Tensor, numbers: Numbers, amount: float) -> Tensor:
    return x + amount


def _contrast(x: Tensor, numbers: Numbers, amount: float) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + amount * (x - mean)


def _pixelate(x: Tensor, numbers: Numbers, amount: float) -> Tensor:
    few = [max(1, round(side * amount)) for side in x.shape[-2:]]
    return interpolate(interpolate(x, few, mode="area"), x.shape[-2:], mode="nearest")


def _invert(x: Tensor, numbers: Numbers, amount: float) -> Tensor:
    return 1 - x


def _grey(x: Tensor, numbers: Numbers, amount: float) -> Tensor:
    return resize(resize(x, (1, *x.shape[-2:])), tuple(x.shape[1:]))


CORRUPTIONS: dict[str, tuple[Function, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "invert": (_invert, (0,) * SEVERITIES),
    "grey": (_grey, (0,) * SEVERITIES),
}


@dataclass(frozen=True)
class Corruption:
    """Corrupt images by name and severity, 1 to 5; the noise of an image is a function of its address.

    Values stay in [0, 1].
    """

    name: str
    severity: int = 3

    def shape(self, found: Shape) -> Shape:
        """Return the same shape."""
        return found

    def __call__(self, x: Tensor, classes: Integers, members: Integers) -> Tensor:
        """Return the corrupted images [R, C, H, W]."""
        address = classes * _MOST_MEMBERS + members
        parts = [self._corrupt(x[at : at + _CHUNK], address[at : at + _CHUNK]) for at in range(0, len(x), _CHUNK)]
        return torch.cat(parts) if parts else x

    def _corrupt(self, x: Tensor, address: Integers) -> Tensor:
        function, amounts = CORRUPTIONS[self.name]
        size = x[0].numel()

        def numbers(count: int) -> Tensor:
            drawn = uniforms(0, stream("corruption", self.name), address, count * size)
            return torch.from_numpy(drawn.reshape(len(x), count, size))

        return function(x, numbers, amounts[self.severity - 1]).clamp(0, 1).contiguous()


def corrupted(source: Any, name: str, corruption: Corruption) -> TransformedSource:
    """Return a source with corrupted images, normalised as it does. ValueError: `name` has no classes of images."""
    if not hasattr(source, "pool"):
        raise ValueError(
            f"evaluation.corruption: tasks of {name} are no classes of images of one source: set it to null"
        )
    return TransformedSource(source, corruption, *moments_of(source), setting="evaluation.corruption")
