"""Define a custom algorithm: differentiable ridge regression (R2-D2, Bertinetto et al. 2019, arXiv 1805.08136).

Adapting to a task is solving for a linear classifier on the network's features, in closed form. Learned over tasks are
the features and the strength of regularisation, so that the solution is good on the queries.

N ways, n = N·K support examples, D features.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import task_loss
from metatrain.models import Model, fold
from metatrain.types import Context, MetaGradient, Params, Prediction
from metatrain.validation import require, require_positive
from tasks.types import Episode, Examples, TaskSpec, Tree

LAMBDA, SCALE = "ridge.log_lambda", "ridge.log_scale"


class Solution(NamedTuple):
    """The adapted weights W [D, N], and the support inputs whose statistics an inductive normalisation needs."""

    weights: Tensor
    support_x: Tensor


@dataclass(frozen=True)
class Ridge:
    """Predict logits α f(x) W, W = argmin ‖Z W − Y‖² + λ ‖W‖², Z = f(support) and Y one-hot (eq. 2 to 5).

    `regulariser` and `scale` are the initial λ and α. Both are learned as logarithms, which keeps them positive; as
    parameters "ridge.…" they can have their own optimiser, `outer.groups.ridge`. The paper's β, one number added to
    all logits, is omitted: it does not change the softmax.
    """

    regulariser: float = 1.0
    scale: float = 10.0

    def __post_init__(self) -> None:
        require_positive("algorithm", regulariser=self.regulariser, scale=self.scale)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        require(spec.ways is not None, "algorithm.name: ridge:Ridge needs classes, and these tasks have none")
        own = {LAMBDA: torch.tensor(math.log(self.regulariser)), SCALE: torch.tensor(math.log(self.scale))}
        return model.initial(head=False) | own

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Solution]:
        z = model.embed(params, support.x, fold(context.noise, 0))
        # Rows of I, not F.one_hot, which reads its values: vmap does not allow that.
        y = torch.eye(model.spec.ways or 0, dtype=z.dtype, device=z.device)[support.y]
        yield Solution(solve_ridge(z, y, params[LAMBDA].exp()), support.x)

    def predict(self, model: Model, params: Params, adapted: Solution, x: Tree, context: Context) -> Prediction:
        z = model.embed(params, x, fold(context.noise, 1), reference=adapted.support_x)
        return params[SCALE].exp() * (z @ adapted.weights)

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        def loss(params: Params, task: Episode, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
            (solution,) = self.trajectory(model, params, task.support, context)
            return task_loss(self.predict(model, params, solution, task.query.x, context), task.query.y)

        return loss_gradient(loss, params, tasks, context, engine)


def solve_ridge(z: Tensor, y: Tensor, regulariser: Tensor) -> Tensor:
    """Return W = Zᵀ (Z Zᵀ + λ I)⁻¹ Y, which is (Zᵀ Z + λ I)⁻¹ Zᵀ Y by Woodbury's identity: n equations instead of D.

    z: Z, [n, D]. y: Y, [n, N]. regulariser: λ > 0, a scalar. Returns [D, N].
    """
    gram = z @ z.T + regulariser * torch.eye(len(z), dtype=z.dtype, device=z.device)
    coefficients: Tensor = torch.linalg.solve(gram, y)
    return z.T @ coefficients
