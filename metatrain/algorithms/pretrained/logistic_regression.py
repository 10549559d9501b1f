"""RFS (Tian et al. 2020): pretrained features, L2-normalised, and a logistic regression on the support set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metatrain.algorithms.pretrained import pretraining as pre
from metatrain.models import Model
from metatrain.types import Context, Params, Prediction
from metatrain.validation import require_positive
from tasks.types import Examples, Tree


class Regression(NamedTuple):
    """W [D, N] and b [N], and the support inputs whose statistics an inductive normalisation needs."""

    weight: Tensor
    bias: Tensor
    support_x: Tensor


@dataclass(frozen=True)
class LogisticRegression:
    """Predict softmax(zᵀW + b), z = f(x) / ‖f(x)‖, W and b the minimum of ½ λ ‖W‖² + Σ_i CE(z_iᵀW + b, y_i) (§3.2).

    λ is `penalty`, the inverse of scikit-learn's C, whose default of 1 the paper uses; b is free, as there. Found by
    `newton_steps` damped Newton steps, from 0, in the at most n dimensions that the support set spans.
    """

    classifier: pre.Classifier = pre.LINEAR
    penalty: float = 1.0
    newton_steps: int = 12

    trains_on_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("algorithm", penalty=self.penalty, newton_steps=self.newton_steps)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Regression]:
        features, y, support_x = pre.embed_support(model, params, support, context)
        targets = pre.one_hot(y, model.spec.ways or 0, features)
        yield Regression(*fit(F.normalize(features, dim=1), targets, self.penalty, self.newton_steps), support_x)

    def predict(self, model: Model, params: Params, adapted: Regression, x: Tree, context: Context) -> Prediction:
        features = pre.embed_queries(model, params, x, adapted.support_x, context)
        return F.normalize(features, dim=1) @ adapted.weight + adapted.bias

    init, meta_gradient = pre.init_classifier, pre.classification_gradient


def fit(z: Tensor, targets: Tensor, penalty: float, steps: int) -> tuple[Tensor, Tensor]:
    """Return W [D, N] and b [N] that minimise ½ λ ‖W‖² + Σ_i CE(z_iᵀW + b, y_i). z: [n, D], targets: one-hot [n, N].

    The minimum lies in the span of z, so W = Q V with zᵀ = Q R, and V [r, N], r = min(n, D), is fitted to Rᵀ. With a
    column of ones for b, a Newton step solves (Λ ⊗ I + Σ_i r_i r_iᵀ ⊗ S_i) δ = −∇, S_i = diag(p_i) − p_i p_iᵀ; it is
    damped by 1 / (1 + decrement) (Nesterov & Nemirovskii 1994), which tends to 1. b is determined up to a constant,
    which is held at mean zero.
    """
    ways = targets.shape[1]
    basis, coordinates = torch.linalg.qr(z.T)
    rows = torch.cat([coordinates.T, torch.ones_like(z[:, :1])], dim=1)
    size = rows.shape[1]
    of_bias = (torch.arange(size, device=z.device) == size - 1).to(z.dtype)
    shrunk = penalty * (1 - of_bias)
    eye = torch.eye(ways, dtype=z.dtype, device=z.device)
    fixed = torch.kron(torch.diag(shrunk), eye) + torch.kron(torch.diag(of_bias), torch.ones_like(eye))
    v = torch.zeros_like(rows.T @ targets)
    for _ in range(steps):
        p = (rows @ v).softmax(1)
        slope = shrunk[:, None] * v + rows.T @ (p - targets)
        s = p[:, :, None] * eye - p[:, :, None] * p[:, None, :]
        curvature = torch.einsum("ia,ib,icd->acbd", rows, rows, s).reshape(size * ways, size * ways)
        delta = torch.linalg.solve(curvature + fixed, slope.reshape(-1))
        decrement = (delta @ slope.reshape(-1)).clamp(min=0).sqrt()
        v = v - (delta / (1 + decrement)).view(size, ways)
    return basis @ v[:-1], v[-1]
