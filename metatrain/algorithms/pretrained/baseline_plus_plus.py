"""Baseline++ (Chen et al. 2019): features pretrained with a cosine classifier, and a cosine head fitted per task."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from metatrain.algorithms.base import predict_embedded
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer, fast_weights
from metatrain.algorithms.pretrained import pretraining as pre
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.types import Context, Params, Prediction
from metatrain.validation import require_positive
from tasks.types import Examples, Tree

_MOMENTUM = InnerOptimizer(momentum=0.9)


class CosineHead(NamedTuple):
    """The head's fast weights, and the support inputs whose statistics an inductive normalisation needs."""

    fast: Tree
    support_x: Tensor


@dataclass(frozen=True)
class BaselinePlusPlus:
    """Predict softmax(s cos(f(x), w_n)), w fitted to the support set by `inner_steps` steps on its cross-entropy.

    s is `scale`. The features do not move. w_n starts at class n's mean feature, normalised, and the whole support set
    is a batch; in the authors' code it starts at random, with batches of 4 and momentum 0.9.
    """

    classifier: pre.Classifier = pre.COSINE
    scale: float = 10.0
    inner_lr: float = 0.01
    inner_steps: int = 100
    inner_optimizer: InnerOptimizer = _MOMENTUM

    trains_on_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("algorithm", scale=self.scale, inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[CosineHead]:
        features, y, support_x = pre.embed_support(model, params, support, context)
        z = F.normalize(features, dim=1)
        optimizer, slope_of = self.inner_optimizer, grad(lambda head: task_loss(self._scores(head, z), y)[0])
        fast = optimizer.start({"weight": F.normalize(pre.class_means(z, y, model.spec.ways or 0), dim=1)})
        yield CosineHead(fast, support_x)
        for t in range(self.inner_steps):
            at = torch.full_like(context.step, t)
            fast = optimizer.step(fast, slope_of(fast_weights(fast)), lambda name: self.inner_lr, at)
            yield CosineHead(fast, support_x)

    def embed_queries(self, model: Model, params: Params, adapted: CosineHead, x: Tree, context: Context) -> Tensor:
        return F.normalize(pre.embed_queries(model, params, x, adapted.support_x, context), dim=1)

    def predict_features(self, model: Model, adapted: CosineHead, features: Tensor) -> Prediction:
        return self._scores(fast_weights(adapted.fast), features)

    def _scores(self, head: Params, z: Tensor) -> Tensor:
        return self.scale * z @ F.normalize(head["weight"], dim=1).T

    init, meta_gradient = pre.init_classifier, pre.classification_gradient
    predict = predict_embedded
