"""What neural processes share: the layers they are made of, sets with padding, and densities from outputs."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metatrain.models import Model
from metatrain.models.dropout import fold
from metatrain.types import Context, Gaussian, Params
from metatrain.validation import require
from tasks.types import Examples, PaddedExamples, TaskSpec, Tree

SUPPORT, QUERY = 0, 1
"""Under which numbers the noise of the network is folded for the two sets."""


class FeedForward(nn.Sequential):
    """`depth` linear layers with ReLU between them: [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, width: int, outputs: int, depth: int) -> None:
        sizes = [inputs, *[width] * (depth - 1), outputs]
        layers: list[nn.Module] = []
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.ReLU()]
        super().__init__(*layers[:-1])


class Attention(nn.Module):
    """Attend from queries to a set, in `heads` heads (Vaswani et al. 2017), written out: it has second derivatives."""

    def __init__(self, inputs: int, values: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(inputs, width, bias=False), nn.Linear(inputs, width, bias=False)
        self.value, self.output = nn.Linear(values, width, bias=False), nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return [q, width]. queries [q, inputs], keys [n, inputs], values [n, values], mask [n]: True for members."""
        q, k, v = self._split(self.query(queries)), self._split(self.key(keys)), self._split(self.value(values))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        output: Tensor = self.output((weights @ v).transpose(-3, -2).flatten(-2))
        return output

    def _split(self, x: Tensor) -> Tensor:
        """Return [heads, n, width / heads]."""
        return x.view(len(x), self.heads, -1).transpose(0, 1)


def require_densities(name: str, model: Model, spec: TaskSpec) -> None:
    """Check that tasks have values, and that the network takes every example by itself. ValueError: not so."""
    require(spec.ways is None, f"algorithm.name: {name} predicts values, and these tasks have classes: set protonet")
    require(len(spec.y) == 1, f"algorithm.name: {name} predicts vectors, and targets have shape {spec.y}: flatten them")
    alone = model.normalization == "none"
    require(alone, f"model: {name} reads support sets of many sizes, without statistics of batches: set model.name=mlp")


def require_divisor(width: int, heads: int) -> None:
    """Check that attention of `width` can be split into `heads`. ValueError: it cannot."""
    require(width % heads == 0, f"algorithm.heads: {width} is no multiple of {heads}: set a divisor of algorithm.width")


def embed(model: Model, params: Params, x: Tree, context: Context, which: int) -> Tensor:
    """Return the features of inputs [n, D]: those of the run's network."""
    return model.embed(params, x, fold(context.noise, which))


def pairs_of(features: Tensor, y: Tensor) -> Tensor:
    """Return features and targets side by side [n, D + d]."""
    return torch.cat([features, y], -1)


def members(examples: Examples | PaddedExamples) -> Tensor:
    """Return which rows are examples [n], where padding is False."""
    if isinstance(examples, PaddedExamples):
        return examples.mask
    return torch.ones(len(examples.y), dtype=torch.bool, device=examples.y.device)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the members of a set [D]; zeros for none. values: [n, D]."""
    inside = mask[:, None].to(values.dtype)
    return (values * inside).sum(0) / inside.sum().clamp(min=1)


def gaussian_of(outputs: Tensor, min_std: float) -> Gaussian:
    """Return N(μ, σ²) with σ = s + (1 − s) softplus(·), s = `min_std`, of outputs [..., 2d]."""
    mean, raw = outputs.chunk(2, -1)
    return Gaussian(mean, min_std + (1 - min_std) * F.softplus(raw))
