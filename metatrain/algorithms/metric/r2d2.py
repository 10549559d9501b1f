"""R2-D2, ridge regression differentiable discriminator (Bertinetto et al. 2019): a head fitted in closed form."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.algorithms.metric import comparison
from metatrain.models import Model
from metatrain.types import Context, Params, Prediction
from metatrain.validation import require_positive
from tasks.types import Examples, TaskSpec, Tree

LOG_LAMBDA, SCALE, SHIFT = "ridge.log_lambda", "ridge.scale", "ridge.shift"


class RidgeHead(NamedTuple):
    """The weights W [D, N], and the support inputs whose statistics an inductive normalisation needs."""

    weights: Tensor
    support_x: Tensor


@dataclass(frozen=True)
class R2D2:
    """Predict α f(x) W + β with W = argmin ‖X W − Y‖² + λ ‖W‖² = Xᵀ (X Xᵀ + λ I)⁻¹ Y (eq. 4, 6 and 7).

    X are the support features [n, D], Y their one-hot labels [n, N], or the values of a regression. The n × n system
    of Woodbury's identity is small: n is ways · shots.

    `regularization` and `scale` are the initial λ and α: log λ, α and β are parameters "ridge.…";
    `outer.groups.ridge` sets their optimiser. Classification leaves out β, which softmax removes.
    """

    regularization: float = 1.0
    scale: float = 10.0

    def __post_init__(self) -> None:
        require_positive("algorithm", regularization=self.regularization, scale=self.scale)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        ridge = {LOG_LAMBDA: torch.tensor(math.log(self.regularization)), SCALE: torch.tensor(self.scale)}
        return model.initial(head=False) | ridge | ({SHIFT: torch.zeros(())} if spec.ways is None else {})

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[RidgeHead]:
        x, ways = comparison.embed_support(model, params, support, context), model.spec.ways
        y = support.y.flatten(1) if ways is None else comparison.one_hot(support.y, ways, x.dtype)
        lambda_eye = params[LOG_LAMBDA].exp() * torch.eye(len(x), dtype=x.dtype, device=x.device)
        yield RidgeHead(x.T @ torch.linalg.solve(x @ x.T + lambda_eye, y), support.x)

    def predict(self, model: Model, params: Params, adapted: RidgeHead, x: Tree, context: Context) -> Prediction:
        embedded = comparison.embed_queries(model, params, x, adapted.support_x, context)
        y = params[SCALE] * embedded @ adapted.weights
        return y if model.spec.ways is not None else (y + params[SHIFT]).view(-1, *model.spec.y)

    meta_gradient = comparison.query_gradient
