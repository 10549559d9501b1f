"""First-order MAML (Finn et al. 2017, §5.2): MAML without the second derivatives, at a third of the arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass

from metatrain.algorithms.gradient_descent import Adapted, descend, first_order, gradient_descent, predict_adapted
from metatrain.checks import positive
from metatrain.engine import Engine, unrolled_gradient
from metatrain.models import Model
from metatrain.types import Context, MetaGradient, Params, Prediction
from tasks.types import Episode, Examples, TaskSpec, Tree


@dataclass(frozen=True)
class FOMAML:
    """The meta-gradient of a task is ∇L_Q at the adapted weights, (∂φ_K/∂θ) taken for the identity."""

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
        inner = first_order(gradient_descent(model, self.inner_lr, self.inner_steps))
        return unrolled_gradient(inner, params, tasks, context, engine)
