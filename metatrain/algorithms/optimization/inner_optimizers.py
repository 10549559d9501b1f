"""Optimisers of the inner loop: gradient descent, momentum and Adam, differentiable in weights, gradients and rates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metatrain.types import Params
from metatrain.validation import require, require_positive
from tasks.types import Tree


class Momentum(NamedTuple):
    """Weights φ_t, and m_t, the sum of gradients that decays by μ at every step."""

    weights: Params
    velocity: Params


class Moments(NamedTuple):
    """Weights φ_t, and the running means of their gradients, m_t, and squared gradients, v_t."""

    weights: Params
    means: Params
    squares: Params


def fast_weights(fast: Tree) -> Params:
    """Return the weights within fast weights that may carry an optimiser's state."""
    return fast if isinstance(fast, dict) else fast.weights


@dataclass(frozen=True)
class InnerOptimizer:
    """How the inner loop moves weights along a gradient g; α is the method's inner rate. State starts at zero.

    sgd: φ_{t+1} = φ_t − α m_{t+1}, m_{t+1} = μ m_t + g, μ = `momentum`.
    adam: m_{t+1} = β1 m_t + (1 − β1) g, v_{t+1} = β2 v_t + (1 − β2) g²,
    φ_{t+1} = φ_t − α (m_{t+1} / (1 − β1^{t+1})) / (√(v_{t+1} / (1 − β2^{t+1})) + ε)  (Kingma & Ba 2015, algorithm 1).
    """

    name: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        where = "algorithm.inner_optimizer."
        require_positive("algorithm.inner_optimizer", eps=self.eps)
        for key in ("momentum", "beta1", "beta2"):
            value = getattr(self, key)
            require(0 <= value < 1, f"{where}{key}: {value:g} is not from 0 to below 1: set 0.9, for example")
        unused = f"{where}momentum: {self.momentum:g} has no effect with adam: remove it, or set name to sgd"
        require(self.name == "sgd" or self.momentum == 0, unused)
        of_adam = (self.beta1, self.beta2, self.eps) == (0.9, 0.999, 1e-8)
        require(
            self.name == "adam" or of_adam,
            f"{where[:-1]}: beta1, beta2 and eps have no effect with sgd: remove them, or set name to adam",
        )

    def start(self, weights: Params) -> Tree:
        """Return the fast weights before the first step: `weights` alone where there is no state."""
        if self.name == "adam":
            return Moments(weights, _zeros(weights), _zeros(weights))
        return Momentum(weights, _zeros(weights)) if self.momentum else weights

    def step(self, fast: Tree, slope: Params, rate: Callable[[str], float | Tensor], t: Tensor) -> Tree:
        """Return the fast weights after inner step t along the gradient `slope`; `rate` gives α by name."""
        if self.name == "adam":
            return self._adam(fast, slope, rate, t)
        if not self.momentum:
            return {name: fast[name] - rate(name) * slope[name] for name in fast}
        velocity = {name: self.momentum * m + slope[name] for name, m in fast.velocity.items()}
        return Momentum({name: value - rate(name) * velocity[name] for name, value in fast.weights.items()}, velocity)

    def _adam(self, fast: Moments, slope: Params, rate: Callable[[str], float | Tensor], t: Tensor) -> Moments:
        means = {name: self.beta1 * m + (1 - self.beta1) * slope[name] for name, m in fast.means.items()}
        squares = {name: self.beta2 * v + (1 - self.beta2) * slope[name] ** 2 for name, v in fast.squares.items()}
        passed = (t + 1).double()
        first, second = 1 - self.beta1**passed, 1 - self.beta2**passed

        def step_of(name: str) -> Tensor:
            mean, square = means[name], squares[name]
            return mean / first.to(mean) / (root(square / second.to(square)) + self.eps)

        moved = {name: value - rate(name) * step_of(name) for name, value in fast.weights.items()}
        return Moments(moved, means, squares)


def root(v: Tensor) -> Tensor:
    """Return √v, v ≥ 0, with the derivative 0 at v = 0.

    There v = g² has derivative 0 too, and √'s own, infinity, would make the product nan. The limit of the whole,
    ∂√(g²)/∂g, is ±1 on either side; 0 is the mean, as for |g|.
    """
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, torch.ones_like(v)).sqrt(), torch.zeros_like(v))


def _zeros(weights: Params) -> Params:
    return {name: torch.zeros_like(value) for name, value in weights.items()}
