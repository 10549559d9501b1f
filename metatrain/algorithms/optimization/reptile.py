"""Reptile (Nichol, Achiam & Schulman 2018): train on a task, then move towards the trained weights."""

from dataclasses import dataclass

from metatrain.algorithms.optimization.gradient_descent import descend, init_weights, predict_adapted
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer, fast_weights
from metatrain.algorithms.optimization.minibatches import ReptileAdam, descend_on_batches
from metatrain.engine import Engine, displacement
from metatrain.models import Model
from metatrain.types import Context, InnerLoop, MetaGradient, Params
from metatrain.validation import require_positive
from tasks.types import Episode


@dataclass(frozen=True)
class Reptile:
    """Update θ ← θ + ε (φ_K − θ), φ_K after K steps of Adam (β1 = 0) on minibatches of the support set (algorithm 2).

    The gradient given to the outer loop is θ − φ_K, so that ε is the rate of `outer.optimizer: sgd`. The query set is
    used for metrics only. Adam restarts with every task; the authors' code keeps its moments across tasks.

    `inner_optimizer`: moves φ instead of this Adam. With gradient descent the displacement sums, after the first step,
    first-order meta-gradients (§5.1), which `outer.optimizer: adam` scales.
    """

    inner_lr: float = 1e-3
    inner_steps: int = 5
    inner_batch: int = 10
    inner_optimizer: InnerOptimizer | None = None

    def __post_init__(self) -> None:
        require_positive(
            "algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps, inner_batch=self.inner_batch
        )

    def inner(self, model: Model) -> InnerLoop:
        optimizer = self.inner_optimizer or ReptileAdam()
        return descend_on_batches(model, optimizer, self.inner_lr, self.inner_steps, self.inner_batch)

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        return displacement(self.inner(model), fast_weights, params, tasks, context, engine)

    init, trajectory, predict = init_weights, descend, predict_adapted
