"""Model-agnostic meta-learning (Finn, Abbeel & Levine 2017): learn the weights from which one step goes far."""

from collections.abc import Iterator
from dataclasses import dataclass

from metatrain.algorithms.gradient_descent import Adapted, descend, gradient_descent, predict_adapted
from metatrain.checks import positive
from metatrain.engine import Engine, unrolled_gradient
from metatrain.models import Model
from metatrain.types import Context, MetaGradient, Params, Prediction
from tasks.types import Episode, Examples, TaskSpec, Tree


@dataclass(frozen=True)
class MAML:
    """min_θ Σ_T L_Q(φ_K(θ)), the gradient taken through all K inner steps: exact second order.

    `inner_lr` is α for a support loss that is a mean over examples.
    """

    inner_lr: float = 0.4
    inner_steps: int = 1

    def __post_init__(self) -> None:
        positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        return model.initial()

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Adapted]:
        return descend(gradient_descent(model, self.inner_lr, self.inner_steps), params, support, context)

    def predict(self, model: Model, params: Params, adapted: Adapted, x: Tree, context: Context) -> Prediction:
        return predict_adapted(model, adapted, x, context)

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        inner = gradient_descent(model, self.inner_lr, self.inner_steps)
        return unrolled_gradient(inner, params, tasks, context, engine)
