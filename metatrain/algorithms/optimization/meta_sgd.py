"""Meta-SGD (Li et al. 2017): learn an inner learning rate for each weight beside the initial weights."""

from dataclasses import dataclass

import torch

from metatrain.algorithms.optimization import gradient_descent as gd
from metatrain.models import Model
from metatrain.types import InnerLoop, Params
from metatrain.validation import require_positive
from tasks.types import TaskSpec

RATE = "inner_lr."


@dataclass(frozen=True)
class MetaSGD:
    """Adapt by φ = θ − α ∘ ∇L_S(θ), α of θ's shape; minimise L_Q(φ) over θ and α (eq. 2 and 3) by its exact gradient.

    `inner_lr` is the initial value of every α. They are parameters "inner_lr.…"; `outer.groups.inner_lr` sets their
    optimiser.
    """

    inner_lr: float = 0.1
    inner_steps: int = 1

    def __post_init__(self) -> None:
        require_positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        weights = model.initial()
        return weights | {RATE + name: torch.full_like(value, self.inner_lr) for name, value in weights.items()}

    def inner(self, model: Model) -> InnerLoop:
        return gd.gradient_descent(model, lambda params, name, t: params[RATE + name], self.inner_steps)

    trajectory, predict, meta_gradient = gd.descend, gd.predict_adapted, gd.unrolled_meta_gradient
