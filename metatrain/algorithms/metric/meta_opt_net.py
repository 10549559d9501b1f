"""MetaOptNet (Lee et al. 2019): a multi-class support vector machine as the head, differentiated at its optimum."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metatrain.algorithms.metric import comparison
from metatrain.algorithms.metric.svm import solve_svm
from metatrain.engine import Engine
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.types import Context, MetaGradient, Params, Prediction
from metatrain.validation import require, require_not_negative, require_positive
from tasks.types import Episode, Examples, TaskSpec, Tree

SCALE = "svm.scale"


class SVM(NamedTuple):
    """The weights W [D, N], and the support inputs whose statistics an inductive normalisation needs."""

    weights: Tensor
    support_x: Tensor


@dataclass(frozen=True)
class MetaOptNet:
    """Predict γ f(x) W, W = Xᵀ A the linear SVM of Crammer & Singer on the support features X [n, D] (eq. 4 to 9).

    The dual variables A [n, N] minimise ½ tr Aᵀ (X Xᵀ + ρ I) A − Σ_i A_{i, y_i} with A ≤ C on each example's own
    class, A ≤ 0 on the others, and rows that sum to zero. `c` is C; `ridge` is ρ, 1 in the authors' code: it makes the
    optimum unique, and so the gradient. `scale` is the initial γ, a parameter "svm.scale"; `outer.groups.svm` sets its
    optimiser. The queries' cross-entropy is to labels smoothed by `label_smoothing`: ε over the other classes.
    """

    c: float = 0.1
    ridge: float = 1.0
    scale: float = 1.0
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        require_positive("algorithm", c=self.c, ridge=self.ridge, scale=self.scale)
        require_not_negative("algorithm", label_smoothing=self.label_smoothing)
        wrong = f"algorithm.label_smoothing: {self.label_smoothing:g} leaves nothing of the label: set it below 0.5"
        require(self.label_smoothing < 0.5, wrong)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        comparison.require_classes("meta_opt_net", spec)
        return model.initial(head=False) | {SCALE: torch.tensor(self.scale)}

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[SVM]:
        x = comparison.embed_support(model, params, support, context)
        labels = comparison.one_hot(support.y, model.spec.ways or 0, x.dtype)
        kernel = x @ x.T + self.ridge * torch.eye(len(x), dtype=x.dtype, device=x.device)
        yield SVM(x.T @ solve_svm(kernel, labels, self.c), support.x)

    def predict(self, model: Model, params: Params, adapted: SVM, x: Tree, context: Context) -> Prediction:
        embedded = comparison.embed_queries(model, params, x, adapted.support_x, context)
        return params[SCALE] * embedded @ adapted.weights

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        loss = partial(smoothed_loss, self.label_smoothing)
        return comparison.query_gradient_of(loss, self, model, params, tasks, context, engine)


def smoothed_loss(smoothing: float, prediction: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy to labels of 1 − ε, and ε / (N − 1) on the others, and metrics."""
    ways = prediction.shape[1]
    # torch spreads its ε over all classes, the own one included.
    loss = F.cross_entropy(prediction, y, label_smoothing=smoothing * ways / (ways - 1))
    return loss, task_loss(prediction, y)[1] | {"loss": loss}
