"""Adapt on minibatches of the support set: the inner loop of Reptile and of the from-scratch baseline."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad

from metatrain.algorithms.optimization.gradient_descent import query_loss
from metatrain.algorithms.optimization.inner_optimizers import fast_weights
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.models.dropout import fold, positions, splitmix64
from metatrain.types import Context, InnerLoop, Params
from tasks.types import Examples, Tree

_BETA2, _EPS = 0.999, 1e-8
_ORDER = 0x5EED


class MovesWeights(Protocol):
    """An optimiser of the inner loop: `InnerOptimizer`, which is differentiable, or `ReptileAdam`."""

    def start(self, weights: Params) -> Tree: ...

    def step(self, fast: Tree, slope: Params, rate: Callable[[str], float | Tensor], t: Tensor) -> Tree: ...


class AdamState(NamedTuple):
    """Weights φ_t and the running mean v_t of their squared gradients."""

    weights: Params
    squares: Params


class ReptileAdam:
    """Adam with β1 = 0: v_t = β2 v_{t−1} + (1 − β2) g²,  φ_t = φ_{t−1} − α √(1 − β2^t) g / (√v_t + ε).

    This is the second form in Kingma & Ba (2015, §2), and TensorFlow's, which Reptile's authors used; its ε keeps a
    gradient that is pure rounding error (such as that of a bias before a normalisation) from becoming a full step.
    """

    def start(self, weights: Params) -> AdamState:
        """Return the weights before the first step, with v_0 = 0."""
        return AdamState(weights, {name: torch.zeros_like(value) for name, value in weights.items()})

    def step(self, fast: AdamState, slope: Params, rate: Callable[[str], float | Tensor], t: Tensor) -> AdamState:
        """Return the weights after step t, counted from 0, along the gradient `slope`; `rate` gives α by name."""
        squares = {name: _BETA2 * v + (1 - _BETA2) * slope[name] ** 2 for name, v in fast.squares.items()}
        corrected = (1 - _BETA2 ** (t + 1).double()) ** 0.5
        weights = {
            name: value - rate(name) * corrected * slope[name] / (squares[name].sqrt() + _EPS)
            for name, value in fast.weights.items()
        }
        return AdamState(weights, squares)


def descend_on_batches(
    model: Model, optimizer: MovesWeights, inner_lr: float, inner_steps: int, inner_batch: int
) -> InnerLoop:
    """Build the inner loop in which `optimizer` moves all weights along the gradient on minibatches of the support."""

    def start(params: Params, support: Examples, context: Context) -> Tree:
        return optimizer.start({name: value for name, value in params.items() if name.startswith("model.")})

    def step(params: Params, fast: Tree, support: Examples, t: Tensor, context: Context) -> Tree:
        slope = batch_gradient(model, fast_weights(fast), support, inner_batch, t, context)
        return optimizer.step(fast, slope, lambda name: inner_lr, t)

    return InnerLoop(start, step, query_loss(model, inner_steps), inner_steps)


def batch_gradient(
    model: Model, weights: Params, support: Examples, inner_batch: int, t: Tensor, context: Context
) -> Params:
    """Return the gradient of the loss of `weights` on minibatch t of the support set."""

    def batch_loss(weights: Params, batch: Examples, noise: Tensor) -> Tensor:
        return task_loss(model.predict(weights, batch.x, noise), batch.y)[0]

    chosen = batch_order(context.noise, len(support.y), t, inner_batch)
    batch = support if chosen is None else Examples(support.x[chosen], support.y[chosen])
    return grad(batch_loss)(weights, batch, fold(context.noise, t))  # type: ignore[no-any-return]


def batch_order(noise: Tensor, examples: int, t: Tensor, inner_batch: int) -> Tensor | None:
    """Return the indices of the examples in minibatch t [inner_batch]; None for all examples.

    Minibatches run through one shuffle after another, each hashed from the task's key and the shuffle's number; tasks
    without a key, in evaluation, all use the same shuffles.
    """
    if inner_batch >= examples:
        return None
    key = torch.where(noise < 0, torch.zeros_like(noise), noise)
    numbers = positions(examples, noise.device)
    position = t * inner_batch + torch.arange(inner_batch, device=noise.device)
    first = t * inner_batch // examples
    # A batch is smaller than a shuffle, so it spans at most two of them.
    shuffles = [torch.argsort(splitmix64(splitmix64(numbers) ^ fold(key, _ORDER + first + later))) for later in (0, 1)]
    return torch.cat(shuffles).index_select(0, position - first * examples)
