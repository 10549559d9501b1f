"""First-order MAML (Finn et al. 2017, §5.2): MAML without second derivatives, for a fraction of the arithmetic."""

from dataclasses import dataclass

from metatrain.algorithms.optimization import gradient_descent as gd
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer
from metatrain.models import Model
from metatrain.types import InnerLoop
from metatrain.validation import require_positive


@dataclass(frozen=True)
class FOMAML:
    """Use ∇L_Q at the adapted weights φ_K as the meta-gradient of a task, replacing ∂φ_K/∂θ by the identity."""

    inner_lr: float = 0.4
    inner_steps: int = 1
    inner_optimizer: InnerOptimizer = gd.SGD

    def __post_init__(self) -> None:
        require_positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def inner(self, model: Model) -> InnerLoop:
        rate = gd.constant_rate(self.inner_lr)
        return gd.first_order(gd.gradient_descent(model, rate, self.inner_steps, optimizer=self.inner_optimizer))

    init, trajectory = gd.init_weights, gd.descend
    predict, meta_gradient = gd.predict_adapted, gd.unrolled_meta_gradient
