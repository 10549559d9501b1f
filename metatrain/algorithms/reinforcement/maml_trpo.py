"""MAML for reinforcement learning: policy gradients inside, TRPO outside (Finn, Abbeel & Levine 2017, §5.3)."""

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from metatrain.algorithms.reinforcement import adaptation
from metatrain.algorithms.reinforcement.adaptation import Experience
from metatrain.algorithms.updates import DIRECTION, OLD, Compute, Move, Update, own_params, sent_params
from metatrain.engine import Engine, gauss_newton_product, loss_gradient, unrolled_gradient
from metatrain.models import Model
from metatrain.reinforcement import policies, surrogates
from metatrain.reinforcement.rollout import Trajectories
from metatrain.reinforcement.surrogates import Estimator
from metatrain.reinforcement.trust_region import Solution, backtrack, conjugate_gradient, dot
from metatrain.types import Context, InnerLoop, MetaGradient, Metrics, Params
from metatrain.validation import require, require_not_negative, require_positive
from tasks.environments.protocol import EnvironmentTask
from tasks.types import Episode, Tree

_LEAST_CURVATURE = 1e-20


@dataclass(frozen=True)
class MAMLTRPO:
    """Maximise the return after `inner_steps` updates of rate `inner_lr`, within a trust region of θ.

    θ ← θ − √(2 max_kl / sᵀFs) s, F s = g by `conjugate_steps` of conjugate gradient, g the meta-gradient through the
    updates and F the Hessian of the mean divergence of the adapted policies; the step shrinks up to `backtracks` times
    by `shrink` until the loss is less and the divergence within `max_kl`. There is no outer optimiser.

    estimator: of the policy gradient in updates, whose derivative the meta-gradient has: "likelihood" as the paper's
    authors, "lvc" and "dice" with less bias (`reinforcement.surrogates`). discount, trace: γ and λ of advantages.
    Without inner steps it is TRPO on all tasks: one policy for them.
    """

    inner_lr: float = 0.1
    inner_steps: int = 1
    estimator: Estimator = "likelihood"
    discount: float = 0.99
    trace: float = 1.0
    max_kl: float = 0.01
    conjugate_steps: int = 10
    damping: float = 1e-5
    backtracks: int = 15
    shrink: float = 0.8

    transductive = False
    acts = True
    uses_optimizer = False
    adapts_by = "updates"

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("conjugate_steps", "backtracks")}
        require_positive("algorithm", inner_lr=self.inner_lr, max_kl=self.max_kl, **counts)
        require_not_negative("algorithm", inner_steps=self.inner_steps, damping=self.damping)
        for name in ("discount", "trace"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"algorithm.{name}: {value:g} is none of 0 to 1: set one of these")
        require(0 < self.shrink < 1, f"algorithm.shrink: {self.shrink:g} shrinks no step: set it above 0, below 1")

    init, collect, score = adaptation.init_policy, adaptation.collect, adaptation.return_by_update

    def inner(self, model: Model) -> InnerLoop:
        return adaptation.policy_descent(self, model)

    def behaviour(self, model: Model, params: Params, task: EnvironmentTask) -> list[Trajectories]:
        """Return how the policy acts in ONE task after 0, 1, … updates, for pictures."""
        return [one.trajectories for one in adaptation.batches(self, model, params, task)]

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        """Differentiate the loss of what was collected through every update. tasks: as `collect` returns them."""
        inner = self.inner(model)
        if self.inner_steps:
            return unrolled_gradient(inner, params, tasks, context, engine)
        return loss_gradient(partial(_loss_of_params, inner), params, tasks, context, engine)

    def fisher_product(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        """Return the sum over tasks of F v: v are the parameters sent as DIRECTION."""
        direction, params = sent_params(params, DIRECTION), own_params(params)
        curve = partial(_curve, model)
        return gauss_newton_product(self.inner(model), curve, params, direction, tasks, context, engine)

    def surrogate(self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine) -> MetaGradient:
        """Return the sums of the loss and the divergence of candidate parameters, without a gradient."""
        stages = (partial(_surrogate, self.inner(model), model),)
        return engine.sum(stages, _run_alone, params, tasks, context)  # type: ignore[no-any-return]

    def update(self, params: Params) -> Update:
        """Take one step within the trust region."""
        found = yield Compute("gradient", params)
        gradient, before = found.means()
        solution = yield from self._solve(params, gradient)
        length = (2 * self.max_kl / max(solution.curvature, _LEAST_CURVATURE)) ** 0.5
        step = {name: length * value for name, value in solution.x.items()}
        after: Metrics = yield from self._search(params, step, before["loss"])
        return {**before, "gradient_norm": dot(gradient, gradient) ** 0.5, **after}

    def _solve(self, params: Params, gradient: Params) -> Generator[Compute, MetaGradient, Solution]:
        """Solve F s = g by products that the workers compute."""
        search = conjugate_gradient(gradient, self.conjugate_steps, self.damping)
        try:
            direction = next(search)
            while True:
                found = yield Compute("fisher", params, {DIRECTION: direction})
                direction = search.send(found.means()[0])
        except StopIteration as done:
            solution: Solution = done.value
            return solution

    def _search(self, params: Params, step: Params, loss: float) -> Generator[Compute | Move, MetaGradient, Metrics]:
        """Move to the first candidate that is better and within the trust region; return how far that is."""
        for shrunk, candidate in enumerate(backtrack(params, step, self.shrink, self.backtracks)):
            found = (yield Compute("surrogate", candidate, {OLD: params})).means()[1]
            if found["loss"] < loss and found["kl"] <= self.max_kl:
                yield Move(candidate)
                return {"kl": found["kl"], "improvement": loss - found["loss"], "backtracks": float(shrunk)}
        return {"kl": 0.0, "improvement": 0.0, "backtracks": float(self.backtracks)}


def _loss_of_params(
    inner: InnerLoop, params: Params, task: Episode, context: Context
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss without any update."""
    t = torch.zeros_like(context.step)
    return inner.loss(params, inner.start(params, task.support, context), task.support, task.query, t, context)


def _curve(model: Model, params: Params, fast: Params, query: Tree, moves: Params, context: Context) -> Params:
    """Return the Hessian at φ of the mean of KL(π_old ‖ π_φ) over τ_K, which φ acted in, times a direction."""

    def slope(candidate: Params) -> Params:
        found: Params = grad(partial(_divergence, model, query))(candidate)
        return found

    product: Params = vjp(slope, fast)[1](moves)[0]
    return product


def _divergence(model: Model, query: Experience, fast: Params) -> Tensor:
    taken = query.trajectories
    policy = policies.action_distribution(model, fast, taken.observations)
    return surrogates.mean_of_steps(policies.divergence(taken.policy, policy), taken.mask)


def _surrogate(
    inner: InnerLoop, model: Model, params: Params, t: Tensor, context: Context, task: Episode
) -> MetaGradient:
    fast = inner.start(params, task.support, context)
    for number in range(inner.length):
        fast = inner.step(params, fast, task.support, torch.full_like(context.step, number), context)
    loss, _ = inner.loss(params, fast, task.support, task.query, torch.full_like(t, inner.length), context)
    divergence = _divergence(model, task.query, fast)  # type: ignore[arg-type]
    return MetaGradient({}, {"loss": loss, "kl": divergence}, torch.ones_like(context.step))


def _run_alone(stages: Any, params: Params, task: Episode, context: Context) -> MetaGradient:
    """Compute the one stage."""
    found: MetaGradient = stages[0](params, torch.zeros_like(context.step), context, task)
    return found
