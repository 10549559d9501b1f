"""Gradients rounded for the journey: once, where a shard's sum has been formed, whoever formed it.

What is rounded is part of what a run computes (in process too), so the bits still do not depend on who computes what:
sums of rounded gradients are float32 again and travel so; a shard's alone travels in half of the bytes.

Each number is off by at most 2⁻⁸ of itself as bfloat16 and 2⁻¹¹ as float16. float16 has too small a range for
gradients, so they are scaled by the power of two that brings the largest to 2¹⁴; what is below 2⁻²⁷ of the largest
loses more.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metatrain.types import MetaGradient

Format = Literal["float32", "bfloat16", "float16"]
Vector = np.ndarray[Any, Any]

_LARGEST = 14
"""Gradients as float16 are below 2 to this power, with one power to spare."""


def rounded(gradient: MetaGradient, to: Format) -> MetaGradient:
    """The same with its gradients rounded to `to`, in the type they had."""
    if to == "float32":
        return gradient
    if to == "bfloat16":
        return gradient._replace(grads={name: _through(g, torch.bfloat16) for name, g in gradient.grads.items()})
    largest = max((float(grad.abs().max()) for grad in gradient.grads.values() if grad.numel()), default=0.0)
    scale = _scale(largest, lambda value: float(torch.tensor(value, dtype=torch.float16)))
    return gradient._replace(
        grads={name: _through(grad * scale, torch.float16) / scale for name, grad in gradient.grads.items()}
    )


def narrowed(vector: Vector, to: Format) -> Vector:
    """A rounded vector of float32 in half of its bytes: bfloat16 as its upper 16 bits, float16 after its scale."""
    if vector.dtype != np.float32 or to == "float32" or not np.isfinite(vector).all():
        return vector
    if to == "bfloat16":
        return (vector.view(np.uint32) >> 16).astype(np.uint16)
    scale = _scale(float(np.abs(vector).max(initial=0)), lambda value: float(np.float16(value)))
    return np.concatenate([np.frombuffer(np.float32(scale).tobytes(), np.float16), (vector * scale).astype(np.float16)])


def widened(vector: Vector, to: Format) -> Vector:
    """What `narrowed` was given."""
    if vector.dtype == np.uint16 and to == "bfloat16":
        return (vector.astype(np.uint32) << 16).view(np.float32)
    if vector.dtype == np.float16 and to == "float16":
        return vector[2:].astype(np.float32) / np.frombuffer(vector[:2].tobytes(), np.float32)[0]  # type: ignore[no-any-return]
    return vector


def _through(grad: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.to(dtype).to(grad.dtype)


def _scale(largest: float, through: Callable[[float], float]) -> float:
    """The power of two for float16; of what has been rounded by it, the same again."""
    if largest == 0 or not math.isfinite(largest):
        return 1.0
    power = math.frexp(largest)[1]
    power = math.frexp(through(math.ldexp(largest, _LARGEST - power)))[1] + power - _LARGEST
    return math.ldexp(1.0, min(max(_LARGEST - power, -126), 126))
