"""ANIL, almost no inner loop (Raghu et al. 2020): the body's features are reused and only the head adapts."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.func import grad

from metatrain.algorithms.base import predict_embedded
from metatrain.algorithms.optimization import gradient_descent as gd
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer, fast_weights
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.models.dropout import fold
from metatrain.models.model import HEAD
from metatrain.types import Context, InnerLoop, Params, Prediction
from metatrain.validation import require_positive
from tasks.types import Examples, Tree


class HeadOnFeatures(NamedTuple):
    """The head's fast weights, and the features of the support set [n, D], computed once per task."""

    head: Tree
    features: Tensor


@dataclass(frozen=True)
class ANIL:
    """Adapt the head: h_{t+1} = h_t − α ∇_h L_S(body, h_t); learn body and h_0 by the exact ∇L_Q(body, h_K)."""

    inner_lr: float = 0.1
    inner_steps: int = 5
    inner_optimizer: InnerOptimizer = gd.SGD

    def __post_init__(self) -> None:
        require_positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def inner(self, model: Model) -> InnerLoop:
        def start(params: Params, support: Examples, context: Context) -> HeadOnFeatures:
            head = {name: value for name, value in params.items() if name.startswith(HEAD)}
            return HeadOnFeatures(
                self.inner_optimizer.start(head), model.embed(params, support.x, fold(context.noise, 0))
            )

        def support_loss(head: Params, features: Tensor, y: Tensor) -> Tensor:
            return task_loss(model.apply_head(head, features), y)[0]

        def step(
            params: Params, fast: HeadOnFeatures, support: Examples, t: Tensor, context: Context
        ) -> HeadOnFeatures:
            slope = grad(support_loss)(fast_weights(fast.head), fast.features, support.y)
            return HeadOnFeatures(
                self.inner_optimizer.step(fast.head, slope, lambda name: self.inner_lr, t), fast.features
            )

        loss = gd.query_loss(model, self.inner_steps, lambda fast: fast_weights(fast.head))
        return InnerLoop(start, step, loss, self.inner_steps)

    def embed_queries(self, model: Model, params: Params, adapted: gd.Adapted, x: Tree, context: Context) -> Tensor:
        return model.embed(params, x, context.noise, reference=adapted.support_x)

    def predict_features(self, model: Model, adapted: gd.Adapted, features: Tensor) -> Prediction:
        return model.apply_head(fast_weights(adapted.fast.head), features)

    init, trajectory, meta_gradient = gd.init_weights_with_head, gd.descend, gd.unrolled_meta_gradient
    predict = predict_embedded
