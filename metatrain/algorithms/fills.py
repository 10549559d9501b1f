"""Baselines that predict a density of each query's values from the support set alone, without any parameters.

They say how much of a likelihood is owed to the support set's spread, and to its nearest value.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.algorithms.neural_processes.networks import masked_mean
from metatrain.models import Model
from metatrain.types import Context, Gaussian, MetaGradient, Params
from tasks.types import Examples, TaskSpec, is_shape, members


class Known(NamedTuple):
    """The support set, which rows are members [n], and the standard deviation of what is predicted [*y]."""

    x: Tensor
    y: Tensor
    mask: Tensor
    std: Tensor


def _for_padded_values(self: object, spec: TaskSpec) -> bool:
    """Return whether tasks ask for densities of values, from support sets of many sizes."""
    return spec.masked and spec.ways is None


def _refuse_trees(self: object, spec: TaskSpec) -> str | None:
    plain = is_shape(spec.x) and spec.support is None
    return None if plain else "it compares inputs that are arrays of one shape, and these are not"


def _no_params(self: object, model: Model, spec: TaskSpec, seed: int) -> Params:
    return {}


def _nothing_to_learn(self: object, *_: object) -> MetaGradient:
    raise ValueError("algorithm.name: a fill has nothing to learn: train another")


@dataclass(frozen=True)
class ConstantFill:
    """Predict N(m, s²) everywhere, m the mean of the support values and s their deviation (`_std`); N(0, 1) of none."""

    offered, refusal, init, meta_gradient = _for_padded_values, _refuse_trees, _no_params, _nothing_to_learn

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Gaussian]:
        mask = members(support)
        mean = masked_mean(support.y, mask)
        yield Gaussian(mean, _std(support.y - mean, mask))

    def predict(self, model: Model, params: Params, adapted: Gaussian, x: Tensor, context: Context) -> Gaussian:
        return Gaussian(*(part.expand(len(x), *part.shape) for part in adapted))


@dataclass(frozen=True)
class NearestFill:
    """Predict N(y_i, s²), i the support example with the nearest input, s the error of this for each by the others.

    N(0, s²) of none; s as in `_std`.
    """

    offered, refusal, init, meta_gradient = _for_padded_values, _refuse_trees, _no_params, _nothing_to_learn

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Known]:
        mask = members(support)
        distances = torch.cdist(support.x, support.x).masked_fill(~mask, torch.inf)
        others = distances.masked_fill(torch.eye(len(distances), dtype=torch.bool, device=mask.device), torch.inf)
        errors = torch.where(mask.sum() > 1, support.y - support.y[others.argmin(1)], 0.0)
        yield Known(support.x, support.y, mask, _std(errors, mask))

    def predict(self, model: Model, params: Params, adapted: Known, x: Tensor, context: Context) -> Gaussian:
        nearest = torch.cdist(x, adapted.x).masked_fill(~adapted.mask, torch.inf).argmin(1)
        known = adapted.mask.any().to(adapted.y.dtype)
        return Gaussian(known * adapted.y[nearest], adapted.std.expand(len(x), *adapted.std.shape))


def _std(errors: Tensor, mask: Tensor) -> Tensor:
    """Return s of s² = (1 + Σ e²) / (1 + n) over the members' errors [*y]: as if one more had an error of 1.

    So few members that agree by chance leave some doubt.
    """
    total = (errors.square() * mask[:, None]).sum(0)
    return ((1 + total) / (1 + mask.sum())).sqrt()
