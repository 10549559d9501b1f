"""First-order MAML (Finn et al. 2017, §5.2): MAML without the second derivatives, for a fraction of the arithmetic."""

from dataclasses import dataclass

from metatrain.algorithms.gradient_descent import (
    constant,
    descend,
    first_order,
    gradient_descent,
    model_weights,
    predict_adapted,
    through_the_loop,
)
from metatrain.models import Model
from metatrain.types import InnerLoop
from metatrain.validation import positive


@dataclass(frozen=True)
class FOMAML:
    """The meta-gradient of a task is ∇L_Q at the adapted weights, (∂φ_K/∂θ) taken for the identity."""

    inner_lr: float = 0.4
    inner_steps: int = 1

    def __post_init__(self) -> None:
        positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def inner(self, model: Model) -> InnerLoop:
        return first_order(gradient_descent(model, constant(self.inner_lr), self.inner_steps))

    init, trajectory, predict, meta_gradient = model_weights, descend, predict_adapted, through_the_loop
