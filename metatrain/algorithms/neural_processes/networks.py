"""What neural processes share: sets with padding, and densities from outputs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from metatrain.models import Model
from metatrain.models.dropout import fold
from metatrain.types import Context, Gaussian, Params
from metatrain.validation import require
from tasks.types import TaskSpec, Tree

SUPPORT, QUERY = 0, 1
"""Under which numbers the noise of the network is folded for the two sets."""


def require_densities(name: str, model: Model, spec: TaskSpec) -> None:
    """Check that tasks have values, and that the network takes every example by itself. ValueError: not so."""
    require(spec.ways is None, f"algorithm.name: {name} predicts values, and these tasks have classes: set protonet")
    require(len(spec.y) == 1, f"algorithm.name: {name} predicts vectors, and targets have shape {spec.y}: flatten them")
    alone = model.normalization == "none"
    require(alone, f"model: {name} reads support sets of many sizes, without statistics of batches: set model.name=mlp")


def embed(model: Model, params: Params, x: Tree, context: Context, which: int) -> Tensor:
    """Return the features of inputs [n, D]: those of the run's network."""
    return model.embed(params, x, fold(context.noise, which))


def pairs_of(features: Tensor, y: Tensor) -> Tensor:
    """Return features and targets side by side [n, D + d]."""
    return torch.cat([features, y], -1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the members of a set [D]; zeros for none. values: [n, D]."""
    inside = mask[:, None].to(values.dtype)
    return (values * inside).sum(0) / inside.sum().clamp(min=1)


def gaussian_of(outputs: Tensor, min_std: float) -> Gaussian:
    """Return N(μ, σ²) with σ = s + (1 − s) softplus(·), s = `min_std`, of outputs [..., 2d]."""
    mean, raw = outputs.chunk(2, -1)
    return Gaussian(mean, min_std + (1 - min_std) * F.softplus(raw))
