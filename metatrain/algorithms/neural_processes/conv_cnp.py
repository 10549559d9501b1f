"""Convolutional conditional neural processes over one input (Gordon et al. 2020)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from metatrain.algorithms.metric.comparison import query_gradient
from metatrain.algorithms.neural_processes import networks
from metatrain.models import Model, Part
from metatrain.models.transformer import FeedForward
from metatrain.types import Context, Gaussian, Params
from metatrain.validation import require, require_positive
from tasks.types import Examples, TaskSpec, Tree, members


@dataclass(frozen=True)
class ConvCNP:
    """Predict N(μ, σ²) by convolutions of the support set on a grid: if all inputs shift, so do the predictions.

    The support set is put on the grid g as Σ_i k(g − x_i) and Σ_i y_i k(g − x_i) / Σ_i k(g − x_i), with
    k(d) = exp(−d²/(2ℓ²)) and a learned ℓ; residual convolutions follow; a query reads Σ_g k'(x − g) h_g (section 4).
    The grid has `per_unit` points per unit of x over `grid`, and `margin` more at both ends. Inputs outside of it
    are predicted as if far from all examples. The inputs are those of the tasks, not the features of a network: set
    `model.name=identity`. The weights are parameters "set_encoder.…", "convolutions.…" and "set_decoder.…".
    """

    grid: tuple[float, float] = (-2.0, 2.0)
    margin: float = 0.5
    per_unit: int = 16
    width: int = 64
    layers: int = 6
    kernel: int = 9
    min_std: float = 0.01

    reads_masks = True

    def __post_init__(self) -> None:
        require_positive("algorithm", width=self.width, layers=self.layers, min_std=self.min_std)
        require_positive("algorithm", kernel=self.kernel, per_unit=self.per_unit)
        low, high = self.grid
        require(low < high, f"algorithm.grid: {low:g} to {high:g} is not a range: set two numbers, the smaller first")
        require(self.kernel % 2 == 1, f"algorithm.kernel: {self.kernel} has no middle: set an odd number")
        require(self.margin >= 0, f"algorithm.margin: {self.margin:g} is negative: set 0 or more")

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        networks.require_densities("conv_cnp", model, spec)
        require(
            spec.x == (1,) and model.num_features == 1,
            f"algorithm.name: conv_cnp takes one input, x [1], and these examples have {spec.x}: set tnp",
        )
        parts = (self._set_encoder(model), self._convolutions(), self._set_decoder(model))
        return model.initial(head=False) | {name: value for part in parts for name, value in part.initial(seed).items()}

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Tensor]:
        x = networks.embed(model, params, support.x, context, networks.SUPPORT)
        put = self._set_encoder(model)(params, self._points(x), x, support.y, members(support))
        yield self._convolutions()(params, put)

    def predict(self, model: Model, params: Params, adapted: Tensor, x: Tree, context: Context) -> Gaussian:
        x = networks.embed(model, params, x, context, networks.QUERY)
        return networks.gaussian_of(self._set_decoder(model)(params, x, self._points(x), adapted), self.min_std)

    meta_gradient = query_gradient

    def _points(self, like: Tensor) -> Tensor:
        """Return the grid [G]."""
        low, high = self.grid[0] - self.margin, self.grid[1] + self.margin
        count = round((high - low) * self.per_unit) + 1
        return low + torch.arange(count, device=like.device).to(like.dtype) / self.per_unit

    def _set_encoder(self, model: Model) -> Part:
        return Part("set_encoder.", partial(SetEncoder, model.spec.y[0], self.width, 1 / self.per_unit))

    def _convolutions(self) -> Part:
        return Part("convolutions.", partial(Convolutions, self.width, self.layers, self.kernel))

    def _set_decoder(self, model: Model) -> Part:
        return Part("set_decoder.", partial(SetDecoder, self.width, 2 * model.spec.y[0], 1 / self.per_unit))


def weights_of(distance: Tensor, log_scale: Tensor) -> Tensor:
    """Return exp(−d²/(2ℓ²)) of a learned log ℓ."""
    return torch.exp(-0.5 * (distance / log_scale.exp()).square())


class SetEncoder(nn.Module):
    """Put a set of pairs on a grid, as its density and its smoothed values."""

    def __init__(self, d: int, width: int, spacing: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2 * spacing).log())
        self.linear = nn.Linear(1 + d, width)

    def forward(self, grid: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Return [width, G]. grid: [G]; x: [n, 1]; y: [n, d]; mask: [n]."""
        weights = weights_of(grid[:, None] - x[:, 0], self.log_scale) * mask.to(x.dtype)
        density = weights.sum(1, keepdim=True)
        channels = torch.cat([density, weights @ y / (density + 1e-5)], 1)
        return self.linear(channels).transpose(0, 1)  # type: ignore[no-any-return]


class Convolutions(nn.Module):
    """Residual blocks of one-dimensional convolution and ReLU."""

    def __init__(self, width: int, layers: int, kernel: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return [width, G] of [width, G]."""
        x = x[None]
        for layer in self.layers:
            x = x + layer(x.relu())
        return x[0]


class SetDecoder(nn.Module):
    """Read a grid at any points, and give outputs there."""

    def __init__(self, width: int, outputs: int, spacing: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2 * spacing).log())
        self.output = FeedForward(width, width, outputs, 2)

    def forward(self, x: Tensor, grid: Tensor, values: Tensor) -> Tensor:
        """Return [n, outputs]. x: [n, 1]; grid: [G]; values: [width, G]."""
        weights = weights_of(x[:, :1] - grid, self.log_scale)
        found: Tensor = self.output(weights @ values.transpose(0, 1))
        return found
