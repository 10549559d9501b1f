"""Classifier-Baseline (Chen et al. 2021): pretrained features, and the nearest class mean by cosine."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from metatrain.algorithms.pretrained import pretraining as pre
from metatrain.models import Model
from metatrain.types import Context, Params, Prediction
from metatrain.validation import require_positive
from tasks.types import Examples, Tree


class Centroids(NamedTuple):
    """One mean feature per class [N, D], and the support inputs whose statistics an inductive normalisation needs."""

    means: Tensor
    support_x: Tensor


@dataclass(frozen=True)
class NearestCentroid:
    """Predict p(y = n | x) ∝ exp(τ cos(f(x), w_n)), w_n the mean of f over the support of class n (§3.1).

    f is pretrained by classifying all training classes (`pretraining.py`); nothing is learned from
    episodes. τ is `scale`, which decides probabilities but not classes.
    """

    classifier: pre.Classifier = pre.LINEAR
    scale: float = 10.0

    trains_on_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("algorithm", scale=self.scale)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Centroids]:
        features, y, support_x = pre.embed_support(model, params, support, context)
        yield Centroids(pre.class_means(features, y, model.spec.ways or 0), support_x)

    def predict(self, model: Model, params: Params, adapted: Centroids, x: Tree, context: Context) -> Prediction:
        features = pre.embed_queries(model, params, x, adapted.support_x, context)
        return self.scale * F.normalize(features, dim=1) @ F.normalize(adapted.means, dim=1).T

    init, meta_gradient = pre.init_classifier, pre.classification_gradient
