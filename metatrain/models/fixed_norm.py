"""Fix the statistics of normalisation layers at those of given examples, so that no example moves another's output."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metatrain.models.dropout import NO_NOISE
from metatrain.models.model import Model
from metatrain.models.normalization import TaskNorm
from metatrain.types import Params
from metatrain.validation import require


class FixedNorm(nn.Module):
    """Compute γ (x − μ) / √(σ² + ε) + β, μ and σ² [C] being constants: batch normalisation in evaluation mode.

    x: [n, C, ...]. γ and β are the parameters `weight` and `bias`, as those of `TaskNorm`.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, layer: TaskNorm, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)

    def forward(self, x: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = self.weight * torch.rsqrt(self.variance + self.eps)
        return x * scale.view(shape) + (self.bias - self.mean * scale).view(shape)


def with_fixed_statistics(model: Model, params: Params, x: Tensor) -> Model:
    """Return a copy of `model` without statistics of batches: of each layer they are those of x [n, *x] at `params`.

    `params` are its parameters still, and the outputs for x are those of the transductive model; the statistics are
    constants, through which no gradient flows. ValueError: its outputs depend on the whole batch in another way.
    """
    require(
        model.can_be_inductive,
        f"model: outputs depend on the whole batch ({model.mixing}): use metatrain.models.TaskNorm in the module",
    )
    body = copy.deepcopy(model.body)
    layers = {name: layer for name, layer in body.named_modules(remove_duplicate=False) if isinstance(layer, TaskNorm)}
    if not layers:
        return model
    inputs: dict[TaskNorm, Tensor] = {}

    def keep(layer: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(layer, TaskNorm)
        inputs[layer] = given[0]

    hooks = [layer.register_forward_pre_hook(keep) for layer in set(layers.values())]
    with torch.no_grad():
        replace(model, body=body).embed(params, x, torch.tensor(NO_NOISE, device=x.device))
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        body = _replace_layer(body, name, _fixed(layer, inputs[layer]))
    return replace(model, body=body, normalization="none")


def _fixed(layer: TaskNorm, x: Tensor) -> FixedNorm:
    variance, mean = torch.var_mean(x, dim=[d for d in range(x.dim()) if d != 1], correction=0)
    return FixedNorm(layer, mean, variance)


def _replace_layer(body: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    owner, _, last = name.rpartition(".")
    if not name:
        return layer
    setattr(body.get_submodule(owner), last, layer)
    return body
