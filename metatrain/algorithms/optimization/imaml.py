"""iMAML (Rajeswaran, Finn, Kakade & Levine 2019): MAML by implicit gradients, for any number of inner steps."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.func import grad

from metatrain.algorithms.optimization import gradient_descent as gd
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer, fast_weights
from metatrain.engine import Engine, ProximalProblem, implicit_gradient
from metatrain.engine.implicit import Solver
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.models.dropout import fold
from metatrain.types import Context, InnerLoop, MetaGradient, Params
from metatrain.validation import require_not_negative, require_positive
from tasks.types import Episode, Examples, Tree


@dataclass(frozen=True)
class IMAML:
    """Minimise Σ_T L_Q(φ*(θ)), φ*(θ) = argmin_φ L_S(φ) + λ/2 ‖φ − θ‖², by (I + ∇²L_S(φ*)/λ)⁻¹ ∇L_Q(φ*)  (eq. 3 and 6).

    φ* is approached from θ by `inner_steps` of `inner_optimizer` at the rate `inner_lr`; λ is `regularization`. The
    linear system is solved by `iterations` of `solver`. Memory does not depend on `inner_steps`.
    damping: is added to λ in the linear system alone. Without it the system is indefinite where a negative eigenvalue
    of the Hessian exceeds λ, as happens in networks with normalisation; the authors' code adds 10.
    """

    inner_lr: float = 0.1
    inner_steps: int = 10
    regularization: float = 2.0
    damping: float = 10.0
    solver: Solver = "conjugate_gradient"
    iterations: int = 5
    inner_optimizer: InnerOptimizer = gd.SGD

    def __post_init__(self) -> None:
        require_positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)
        require_positive("algorithm", regularization=self.regularization, iterations=self.iterations)
        require_not_negative("algorithm", damping=self.damping)

    def inner(self, model: Model) -> InnerLoop:
        """Return the inner loop, whose gradient is not taken through its steps: see `problem`."""

        def start(params: Params, support: Examples, context: Context) -> Tree:
            weights = {name: value for name, value in params.items() if gd.is_model_weight(name)}
            return self.inner_optimizer.start(weights)

        def step(params: Params, fast: Tree, support: Examples, t: Tensor, context: Context) -> Tree:
            weights = fast_weights(fast)
            slope = grad(partial(support_loss, model), argnums=1)(params, weights, support, context)
            pulled = {name: slope[name] + self.regularization * (weights[name] - params[name]) for name in weights}
            return self.inner_optimizer.step(fast, pulled, lambda name: self.inner_lr, t)

        return InnerLoop(start, step, gd.query_loss(model, self.inner_steps), self.inner_steps)

    def problem(self, model: Model) -> ProximalProblem:
        """Return the inner problem for the engine."""
        return ProximalProblem(
            self.inner(model), fast_weights, partial(support_loss, model), self.regularization + self.damping
        )

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        return implicit_gradient(self.problem(model), self.solver, self.iterations, params, tasks, context, engine)

    init, trajectory, predict = gd.init_weights, gd.descend, gd.predict_adapted


def support_loss(model: Model, params: Params, weights: Params, support: Examples, context: Context) -> Tensor:
    """Return L_S(φ), without the proximal term: one mask in all inner steps, so that it is one function of φ."""
    return task_loss(model.predict(params | weights, support.x, fold(context.noise, 0)), support.y)[0]
