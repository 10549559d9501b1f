"""Multiply by the curvature of a loss as a function of meta-parameters, through inner loops of gradient steps."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from metatrain.engine.gradients import single_task_gradient, start, step_numbers
from metatrain.engine.vectorize import Engine
from metatrain.types import Context, InnerLoop, MetaGradient, Params
from tasks.types import Episode, Examples, Tree

Curve = Callable[[Params, Params, Examples, Params, Context], Params]
"""(params, φ, query, φ̇, context) -> G(φ) φ̇, the curvature of the loss of φ times a direction."""


class _Along(NamedTuple):
    """φ_t, and how it moves with θ along the direction: (∂φ_t/∂θ) v."""

    fast: Params
    moves: Params


class _Stages(NamedTuple):
    start: Callable[..., Params]
    step: Callable[..., _Along]
    curve: Callable[..., Params]
    backward_step: Callable[..., Params]
    finish: Callable[..., MetaGradient]


def gauss_newton_product(
    inner: InnerLoop, curve: Curve, params: Params, direction: Params, tasks: Episode, context: Context, engine: Engine
) -> MetaGradient:
    """Compute Σ_tasks Jᵀ G(φ_K) J v with J = ∂φ_K/∂θ and v the `direction`.

    φ is a part of θ, which moves by steps along gradients alone: φ_{t+1} = φ_t − α ∇L_t(φ_t), whose Jacobian is
    symmetric, so that the transposed one serves for both. Where the loss is a divergence from φ_K itself, as for
    natural gradients, this is its whole Hessian.
    """
    stages = _Stages(
        partial(start, inner),
        partial(_step, inner),
        partial(_curve, curve),
        partial(_backward_step, inner),
        _finish,
    )
    named = params | {f"{_ALONG}{name}": value for name, value in direction.items()}
    return engine.sum(stages, partial(_run, inner.length), named, tasks, context)  # type: ignore[no-any-return]


_ALONG = "along."


def _run(length: int, stages: _Stages, named: Params, task: Episode, context: Context) -> MetaGradient:
    direction = {name.removeprefix(_ALONG): value for name, value in named.items() if name.startswith(_ALONG)}
    params = {name: value for name, value in named.items() if not name.startswith(_ALONG)}
    at = step_numbers(length + 1, params)
    fast = stages.start(params, at[0], context, task.support)
    along, before = _Along(fast, {name: direction[name] for name in fast}), []
    for t in range(length):
        before.append(along.fast)
        along = stages.step(params, at[t], context, along, task.support)
    adjoint = stages.curve(params, at[length], context, along, task.query)
    for t in reversed(range(length)):
        adjoint = stages.backward_step(params, at[t], context, before.pop(), task.support, adjoint)
    return stages.finish(params, at[0], context, adjoint)


def _step(inner: InnerLoop, params: Params, t: Tensor, context: Context, along: _Along, support: Examples) -> _Along:
    after, pull, *_ = vjp(lambda fast: inner.step(params, fast, support, t, context), along.fast)
    return _Along(after, pull(along.moves)[0])


def _curve(curve: Curve, params: Params, t: Tensor, context: Context, along: _Along, query: Examples) -> Params:
    return curve(params, along.fast, query, along.moves, context)


def _backward_step(
    inner: InnerLoop, params: Params, t: Tensor, context: Context, fast: Params, support: Tree, adjoint: Params
) -> Params:
    found: Params = vjp(lambda fast: inner.step(params, fast, support, t, context), fast)[1](adjoint)[0]
    return found


def _finish(params: Params, t: Tensor, context: Context, adjoint: Params) -> MetaGradient:
    grads = {name: adjoint[name] if name in adjoint else torch.zeros_like(value) for name, value in params.items()}
    return single_task_gradient(grads, {})
