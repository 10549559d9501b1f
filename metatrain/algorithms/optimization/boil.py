"""BOIL, body only update in the inner loop (Oh et al. 2021): the head is fixed and the features adapt."""

from dataclasses import dataclass

from metatrain.algorithms.optimization import gradient_descent as gd
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer
from metatrain.models import Model
from metatrain.models.model import BODY
from metatrain.types import InnerLoop
from metatrain.validation import require_positive


@dataclass(frozen=True)
class BOIL:
    """Adapt the body: b_{t+1} = b_t − α ∇_b L_S(b_t, head); learn b_0 and head by the exact ∇L_Q(b_K, head)."""

    inner_lr: float = 0.4
    inner_steps: int = 1
    inner_optimizer: InnerOptimizer = gd.SGD

    def __post_init__(self) -> None:
        require_positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def inner(self, model: Model) -> InnerLoop:
        return gd.gradient_descent(
            model,
            gd.constant_rate(self.inner_lr),
            self.inner_steps,
            adapts=lambda name: name.startswith(BODY),
            optimizer=self.inner_optimizer,
        )

    init, trajectory = gd.init_weights_with_head, gd.descend
    predict, meta_gradient = gd.predict_adapted, gd.unrolled_meta_gradient
