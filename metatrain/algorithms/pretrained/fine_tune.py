"""Fine-tuning: a pretrained network, all of whose weights move on the support set, under a fresh linear head."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.func import grad

from metatrain.algorithms.optimization.gradient_descent import Adapted
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer, fast_weights
from metatrain.algorithms.pretrained import pretraining as pre
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.models.dropout import fold
from metatrain.models.model import BODY
from metatrain.types import Context, Params, Prediction
from metatrain.validation import require_positive
from tasks.types import Examples, Tree

_WEIGHT, _BIAS = "weight", "bias"
_ADAM = InnerOptimizer(name="adam")


@dataclass(frozen=True)
class FineTune:
    """Minimise the support set's cross-entropy over body, W and b by `inner_steps` steps; predict W f(x) + b.

    head: where W and b start. "centroids": w_n = 2 c_n, b_n = −‖c_n‖², c_n the mean feature of class n, which is the
    nearest class mean before the first step (as in Triantafillou et al. 2020, Proto-MAML); "zero": W = 0, b = 0.
    """

    classifier: pre.Classifier = pre.LINEAR
    head: Literal["centroids", "zero"] = "centroids"
    inner_lr: float = 1e-3
    inner_steps: int = 20
    inner_optimizer: InnerOptimizer = _ADAM

    trains_on_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Adapted]:
        def loss(fast: Params, t: Tensor) -> Tensor:
            features = model.embed(fast, support.x, fold(context.noise, 2 + t))
            return task_loss(_scores(fast, features), support.y)[0]

        body = {name: value for name, value in params.items() if name.startswith(BODY)}
        fast = self.inner_optimizer.start(body | self._start(model, params, support, context))
        yield Adapted(fast, support.x)
        for t in range(self.inner_steps):
            at = torch.full_like(context.step, t)
            slope = grad(loss)(fast_weights(fast), at)
            fast = self.inner_optimizer.step(fast, slope, lambda name: self.inner_lr, at)
            yield Adapted(fast, support.x)

    def predict(self, model: Model, params: Params, adapted: Adapted, x: Tree, context: Context) -> Prediction:
        fast = fast_weights(adapted.fast)
        return _scores(fast, pre.embed_queries(model, fast, x, adapted.support_x, context))

    def _start(self, model: Model, params: Params, support: Examples, context: Context) -> Params:
        features, y, _ = pre.embed_support(model, params, support, context)
        means = pre.class_means(features, y, model.spec.ways or 0)
        if self.head == "zero":
            means = torch.zeros_like(means)
        return {_WEIGHT: 2 * means, _BIAS: -(means * means).sum(1)}

    init, meta_gradient = pre.init_classifier, pre.classification_gradient


def _scores(fast: Params, features: Tensor) -> Tensor:
    return features @ fast[_WEIGHT].T + fast[_BIAS]
