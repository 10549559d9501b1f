"""How exactly matrix products and convolutions are computed. Parameters, gradients and their sums stay float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]
"""float32; tf32: products of a GPU rounded to 10 bits of mantissa; bfloat16: to 7, activations too (torch.autocast)."""


@contextmanager
def matmul_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within it products on `device` are computed in `precision`; float64 is left alone."""
    if precision == "bfloat16":
        # Its cache holds casts of tensors that a transform has wrapped, beyond the life of the transform.
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
            yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
