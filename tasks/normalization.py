"""Undo the normalisation of images by mean and standard deviation, for display."""

import torch
from torch import Tensor


def moment_tensors(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and std, each [1 or C, 1, 1]; () is 0 and 1."""
    mean_of, std_of = (torch.tensor(values or (default,)) for values, default in ((mean, 0.0), (std, 1.0)))
    return mean_of[:, None, None], std_of[:, None, None]


def denormalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Map normalised images [..., C, H, W] of any dtype and device back to values in [0, 1]."""
    if not (mean or std):
        return x
    mean_of, std_of = moment_tensors(mean, std)
    return x * std_of.to(x) + mean_of.to(x)
