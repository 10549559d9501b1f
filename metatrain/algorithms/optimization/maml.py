"""Model-agnostic meta-learning (Finn, Abbeel & Levine 2017): learn initial weights that adapt in a few steps."""

from dataclasses import dataclass

from metatrain.algorithms.optimization import gradient_descent as gd
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer
from metatrain.models import Model
from metatrain.types import InnerLoop
from metatrain.validation import require_positive


@dataclass(frozen=True)
class MAML:
    """Minimise Σ_T L_Q(φ_K(θ)) over θ by its exact gradient through all K inner steps (second order).

    `inner_lr` is α for a support loss that is a mean over examples; `inner_optimizer` may be another than descent.
    """

    inner_lr: float = 0.4
    inner_steps: int = 1
    inner_optimizer: InnerOptimizer = gd.SGD

    def __post_init__(self) -> None:
        require_positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def inner(self, model: Model) -> InnerLoop:
        rate = gd.constant_rate(self.inner_lr)
        return gd.gradient_descent(model, rate, self.inner_steps, optimizer=self.inner_optimizer)

    init, trajectory = gd.init_weights, gd.descend
    predict, meta_gradient = gd.predict_adapted, gd.unrolled_meta_gradient
