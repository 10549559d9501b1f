"""Compute meta-gradients by the implicit function theorem, from the solution of an inner problem alone.

No inner step is differentiated and none is kept, so that memory does not depend on their number.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp
from torch.utils._pytree import tree_map

from metatrain.engine.gradients import loss_gradients, single_task_gradient, start, step, step_numbers
from metatrain.engine.vectorize import Engine
from metatrain.types import Context, InnerLoop, MetaGradient, Params
from tasks.types import Episode, Examples, Tree

Solver = Literal["conjugate_gradient", "neumann"]


class ProximalProblem(NamedTuple):
    """The inner problem φ*(θ) = argmin_φ L_S(φ) + λ/2 ‖φ − θ‖² and an iteration that approaches its solution."""

    inner: InnerLoop
    """The iteration, and the query loss after it; no gradient is taken through its steps."""
    weights: Callable[[Tree], Params]
    """fast weights -> φ, the parameters among them, which are those of θ of the same names."""
    support_loss: Callable[[Params, Params, Examples, Context], Tensor]
    """(params, φ, support, context) -> L_S(φ), without the proximal term."""
    strength: float
    """λ as the linear system has it"""


class _Iterate(NamedTuple):
    """An iterate x of a solver of A x = v, with A = I + ∇²L_S(φ)/λ.

    Conjugate gradient: `residual` is v − A x, `direction` the next one. Neumann: `residual` is the last term of the
    series, and `direction` is not used.
    """

    x: Params
    residual: Params
    direction: Params


class _ImplicitStages(NamedTuple):
    start: Callable[..., Tree]
    step: Callable[..., Tree]
    query: Callable[..., tuple[Params, dict[str, Tensor]]]
    """(θ, t, context, fast, task) -> (v = ∇L_Q(φ), metrics)"""
    solve: Callable[..., _Iterate]
    """(θ, t, context, φ, support, iterate) -> the next iterate"""
    finish: Callable[..., MetaGradient]
    """(θ, t, context, x, metrics) -> the task's meta-gradient"""


def implicit_gradient(
    problem: ProximalProblem,
    solver: Solver,
    iterations: int,
    params: Params,
    tasks: Episode,
    context: Context,
    engine: Engine,
) -> MetaGradient:
    """Compute Σ_tasks (I + ∇²L_S(φ)/λ)⁻¹ ∇L_Q(φ), φ the inner solution (Rajeswaran et al. 2019, lemma 1 and eq. 8).

    conjugate_gradient: exact after as many iterations as there are distinct eigenvalues of the Hessian.
    neumann: Σ_{k ≤ iterations} (−∇²L_S(φ)/λ)ᵏ v, which converges where λ is above every absolute eigenvalue
    (Lorraine et al. 2020). The parameters of θ that φ does not hold get the gradient zero.
    """
    stages = _ImplicitStages(
        partial(start, problem.inner),
        partial(step, problem.inner),
        partial(_query, problem),
        partial(_conjugate_gradient if solver == "conjugate_gradient" else _neumann, problem),
        _finish,
    )
    run = partial(_run, problem, solver, iterations)
    return engine.sum(stages, run, params, tasks, context)  # type: ignore[no-any-return]


def _run(
    problem: ProximalProblem,
    solver: Solver,
    iterations: int,
    stages: _ImplicitStages,
    params: Params,
    task: Episode,
    context: Context,
) -> MetaGradient:
    length = problem.inner.length
    at = step_numbers(length + 1, params)
    fast = stages.start(params, at[0], context, task.support)
    for t in range(length):
        fast = stages.step(params, at[t], context, fast, task.support)
    found = problem.weights(fast)
    slope, metrics = stages.query(params, at[length], context, fast, task)
    begins = tree_map(torch.zeros_like, slope) if solver == "conjugate_gradient" else slope
    iterate = _Iterate(begins, slope, slope)
    for _ in range(iterations):
        iterate = stages.solve(params, at[0], context, found, task.support, iterate)
    return stages.finish(params, at[0], context, iterate.x, metrics)


def _query(
    problem: ProximalProblem, params: Params, t: Tensor, context: Context, fast: Tree, task: Episode
) -> tuple[Params, dict[str, Tensor]]:
    slope, metrics = loss_gradients(problem.inner, params, fast, task, t, context)[1:]
    return problem.weights(slope), metrics


def _conjugate_gradient(
    problem: ProximalProblem,
    params: Params,
    t: Tensor,
    context: Context,
    found: Params,
    support: Examples,
    iterate: _Iterate,
) -> _Iterate:
    """Take one step of Hestenes & Stiefel (1952); none where the curvature along the direction is not positive."""
    x, residual, direction = iterate
    curved = tree_map(torch.add, direction, _curve(problem, params, context, found, support, direction))
    square, curvature = _dot(residual, residual), _dot(direction, curved)
    length = _ratio(square, curvature)
    left = _moved(residual, -length, curved)
    return _Iterate(_moved(x, length, direction), left, _moved(left, _ratio(_dot(left, left), square), direction))


def _neumann(
    problem: ProximalProblem,
    params: Params,
    t: Tensor,
    context: Context,
    found: Params,
    support: Examples,
    iterate: _Iterate,
) -> _Iterate:
    """Add the next term of Σ (−∇²L_S/λ)ᵏ v."""
    term = tree_map(torch.neg, _curve(problem, params, context, found, support, iterate.residual))
    return _Iterate(tree_map(torch.add, iterate.x, term), term, iterate.direction)


def _curve(
    problem: ProximalProblem, params: Params, context: Context, found: Params, support: Examples, along: Params
) -> Params:
    """Return ∇²L_S(φ) along / λ: the transposed Jacobian of the gradient, which is symmetric."""

    def slopes(found: Params) -> Params:
        slope: Params = grad(problem.support_loss, argnums=1)(params, found, support, context)
        return slope

    (product,) = vjp(slopes, found)[1](along)
    return {name: value / problem.strength for name, value in product.items()}


def _dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b, and 0 where b is not positive."""
    positive = b > 0
    return torch.where(positive, a / torch.where(positive, b, torch.ones_like(b)), torch.zeros_like(a))


def _moved(x: Params, by: Tensor, along: Params) -> Params:
    return {name: value + by * along[name] for name, value in x.items()}


def _finish(params: Params, t: Tensor, context: Context, x: Params, metrics: dict[str, Tensor]) -> MetaGradient:
    grads = {name: x[name] if name in x else torch.zeros_like(value) for name, value in params.items()}
    return single_task_gradient(grads, metrics)
