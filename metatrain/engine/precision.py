"""Set the precision of matrix products and convolutions. Parameters, gradients and their sums stay float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]
"""tf32: GPU products rounded to 10 bits of mantissa; bfloat16: to 7 bits, activations included (torch.autocast)."""


@contextmanager
def matmul_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute products on `device` in `precision` within this context; float64 is not affected."""
    if precision == "bfloat16":
        # The autocast cache would keep casts of a transform's wrapped tensors after the transform has ended.
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
