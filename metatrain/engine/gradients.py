"""Compute exact meta-gradients through inner loops, one step at a time.

The gradient through K inner steps keeps fast weights, not the graph: the reverse pass recomputes one step at a time,
so memory per inner step grows by the size of the parameters, not of the activations. Loops of 100 steps or more keep
every √K-th set of fast weights and recompute those between.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils._pytree import tree_map

from metatrain.engine.vectorize import Engine, device_of
from metatrain.types import Context, InnerLoop, MetaGradient, Params
from tasks.types import Episode, Examples, Tree

TaskLoss = Callable[[Params, Any, Context], tuple[Tensor, dict[str, Tensor]]]
"""(params, task, context) -> (loss, metrics) of one task."""

_LONG = 100
"""The number of inner steps from which fast weights are kept every √K steps only: fewer take little memory."""


Gradients = tuple[Params, Tree]
"""(g, λ): the gradient of θ accumulated so far, and the adjoint of the fast weights."""


class _UnrolledStages(NamedTuple):
    """Stages of a reverse pass, with g the gradient accumulated so far and λ the adjoint of the fast weights."""

    start: Callable[..., Tree]
    """(θ, t, context, support) -> φ_0"""
    step: Callable[..., Tree]
    """(θ, t, context, φ_t, support) -> φ_{t+1}"""
    last_step: Callable[..., tuple[Gradients, dict[str, Tensor]]]
    """(θ, t, context, φ_t, task) -> ((g, λ), metrics): forward and backward through the last step t."""
    backward_step: Callable[..., Gradients]
    """(θ, t, context, φ_t, task, (g, λ)) -> (g, λ)"""
    finish: Callable[..., MetaGradient]
    """(θ, t, context, support, (g, λ), metrics) -> the task's meta-gradient"""


def unrolled_gradient(
    inner: InnerLoop, params: Params, tasks: Episode, context: Context, engine: Engine
) -> MetaGradient:
    """Compute Σ_tasks ∇_θ Σ_t w_t L_Q(φ_t(θ)) exactly, with φ_0 = start(θ) and φ_{t+1} = step(θ, φ_t)."""
    if inner.length < 1:
        raise ValueError(f"InnerLoop.length: {inner.length} steps: set 1 or more")
    stages = _UnrolledStages(
        partial(start, inner),
        partial(step, inner),
        partial(_last_step, inner),
        partial(_backward_step, inner),
        partial(_finish, inner),
    )
    return engine.sum(stages, partial(_reverse_pass, inner.length), params, tasks, context)  # type: ignore[no-any-return]


def loss_gradient(task_loss: TaskLoss, params: Params, tasks: Tree, context: Context, engine: Engine) -> MetaGradient:
    """Compute Σ_tasks ∇_θ loss(θ, task), for methods without an inner loop."""
    if engine.vectorize == "vmap" and not engine.compile:
        grads, metrics = engine.gradient_of_sum(task_loss, params, tasks, context)
        count = torch.full((), len(context.noise), dtype=torch.int64, device=device_of(params))
        return MetaGradient(grads, metrics, count)
    stages = (partial(_gradient_of_loss, task_loss),)
    return engine.sum(stages, _run_single_stage, params, tasks, context)  # type: ignore[no-any-return]


class _DisplacementStages(NamedTuple):
    start: Callable[..., Tree]
    step: Callable[..., Tree]
    finish: Callable[..., MetaGradient]
    """(θ, t, context, φ_K, task) -> θ − φ_K"""


def displacement(
    inner: InnerLoop,
    weights: Callable[[Tree], Params],
    params: Params,
    tasks: Episode,
    context: Context,
    engine: Engine,
) -> MetaGradient:
    """Compute Σ_tasks θ − φ_K(θ) (Reptile); `weights` selects the parameters within φ."""
    stages = _DisplacementStages(partial(start, inner), partial(step, inner), partial(_displacement, inner, weights))
    return engine.sum(stages, partial(_run_forward, inner.length), params, tasks, context)  # type: ignore[no-any-return]


def most_kept(length: int) -> int:
    """Return the most sets of fast weights that a reverse pass through `length` inner steps keeps at once."""
    every = _kept_every(length)
    return length if every == 1 else math.ceil(length / every) + every


def _kept_every(length: int) -> int:
    return 1 if length < _LONG else math.isqrt(length - 1) + 1


def _reverse_pass(
    length: int, stages: _UnrolledStages, params: Params, task: Episode, context: Context
) -> MetaGradient:
    """Run reverse mode by hand: λ_t = w_t ∂L_t/∂φ_t + (∂step_t/∂φ_t)ᵀ λ_{t+1}, accumulating the part of θ in g."""
    at = step_numbers(length, params)
    every = _kept_every(length)
    fast = stages.start(params, at[0], context, task.support)
    kept = {0: fast}
    for t in range(length - 1):
        fast = stages.step(params, at[t], context, fast, task.support)
        if (t + 1) % every == 0:
            kept[t + 1] = fast
    gradients, metrics = stages.last_step(params, at[length - 1], context, fast, task)
    del fast
    for t in reversed(range(length - 1)):
        if t not in kept:
            first = t - t % every
            for s in range(first, t):
                kept[s + 1] = stages.step(params, at[s], context, kept[s], task.support)
        gradients = stages.backward_step(params, at[t], context, kept.pop(t), task, gradients)
    return stages.finish(params, at[0], context, task.support, gradients, metrics)


def _run_forward(
    length: int, stages: _DisplacementStages, params: Params, task: Episode, context: Context
) -> MetaGradient:
    at = step_numbers(length, params)
    fast = stages.start(params, at[0], context, task.support)
    for t in range(length):
        fast = stages.step(params, at[t], context, fast, task.support)
    return stages.finish(params, at[0], context, fast, task)


def _run_single_stage(
    stages: tuple[Callable[..., MetaGradient]], params: Params, task: Tree, context: Context
) -> MetaGradient:
    return stages[0](params, step_numbers(1, params)[0], context, task)


def step_numbers(length: int, params: Params) -> list[Tensor]:
    """Return 0, 1, … as int64 scalar tensors, so that one compiled step serves for all of them."""
    return [torch.full((), t, dtype=torch.int64, device=device_of(params)) for t in range(length)]


def start(inner: InnerLoop, params: Params, t: Tensor, context: Context, support: Examples) -> Tree:
    """Return φ_0 = start(θ): the stage that begins every inner loop."""
    return inner.start(params, support, context)


def step(inner: InnerLoop, params: Params, t: Tensor, context: Context, fast: Tree, support: Examples) -> Tree:
    """Return φ_{t+1} = step(θ, φ_t)."""
    return inner.step(params, fast, support, t, context)


def _last_step(
    inner: InnerLoop, params: Params, t: Tensor, context: Context, fast: Tree, task: Episode
) -> tuple[Gradients, dict[str, Tensor]]:
    """Run the last step and transpose it at once: this keeps the graph of one step, and of no other."""
    after, pull = _step_and_transpose(inner, params, fast, task.support, t, context)
    grads, adjoint, metrics = loss_gradients(inner, params, after, task, t + 1, context)
    weights = _loss_weights(inner, context)
    if weights is not None:
        grads, adjoint = _scale((grads, adjoint), weights[inner.length])
    to_params, adjoint = pull(adjoint)
    return _add_loss_at(inner, params, t, context, fast, task, (_add(grads, to_params), adjoint)), metrics


def _backward_step(
    inner: InnerLoop, params: Params, t: Tensor, context: Context, fast: Tree, task: Episode, gradients: Gradients
) -> Gradients:
    grads, adjoint = gradients
    if inner.transpose is not None:
        to_params, adjoint = inner.transpose(params, fast, task.support, t, context, adjoint)
    else:
        to_params, adjoint = _step_and_transpose(inner, params, fast, task.support, t, context)[1](adjoint)
    return _add_loss_at(inner, params, t, context, fast, task, (_add(grads, to_params), adjoint))


def _finish(
    inner: InnerLoop,
    params: Params,
    t: Tensor,
    context: Context,
    support: Examples,
    gradients: Gradients,
    metrics: dict[str, Tensor],
) -> MetaGradient:
    grads, adjoint = gradients
    pull = vjp(lambda p: inner.start(p, support, context), params)[1]
    return single_task_gradient(_add(grads, pull(adjoint)[0]), metrics)


def _displacement(
    inner: InnerLoop,
    weights: Callable[[Tree], Params],
    params: Params,
    t: Tensor,
    context: Context,
    fast: Tree,
    task: Episode,
) -> MetaGradient:
    metrics = inner.loss(params, fast, task.support, task.query, t + inner.length, context)[1]
    after = params | weights(fast)
    return single_task_gradient({name: value - after[name] for name, value in params.items()}, metrics)


def _gradient_of_loss(task_loss: TaskLoss, params: Params, t: Tensor, context: Context, task: Tree) -> MetaGradient:
    (grads,), metrics = _slopes(lambda p: task_loss(p, task, context), params)
    return single_task_gradient(grads, metrics)


def _loss_weights(inner: InnerLoop, context: Context) -> Tensor | None:
    return None if inner.weights is None else inner.weights(context.step)


def _add_loss_at(
    inner: InnerLoop, params: Params, t: Tensor, context: Context, fast: Tree, task: Episode, gradients: Gradients
) -> Gradients:
    """Return g and λ plus the gradient of the loss after t steps, weighted, if losses before the last count."""
    weights = _loss_weights(inner, context)
    if weights is None:
        return gradients
    grads, adjoint = gradients
    weight = weights.index_select(0, t.view(1)).squeeze(0)
    to_params, to_fast, _ = loss_gradients(inner, params, fast, task, t, context)
    return _add(grads, _scale(to_params, weight)), _add(adjoint, _scale(to_fast, weight))


def loss_gradients(
    inner: InnerLoop, params: Params, fast: Tree, task: Episode, t: Tensor, context: Context
) -> tuple[Params, Tree, dict[str, Tensor]]:
    """Return (∂L/∂θ, ∂L/∂φ, metrics) of the query loss after t steps."""

    def loss(params: Params, fast: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        return inner.loss(params, fast, task.support, task.query, t, context)

    (to_params, to_fast), metrics = _slopes(loss, params, fast)
    return to_params, to_fast, metrics


def _slopes(loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], *at: Tree) -> tuple[tuple[Any, ...], Any]:
    """Return ((∂loss/∂x for every x of `at`), metrics), of a loss that returns (loss, metrics).

    Unlike `torch.func.grad` it keeps no graph for a derivative of its own, which nothing here takes, and frees what a
    layer kept once the layer is transposed.
    """
    value, pull, *metrics = vjp(loss, *at, has_aux=True)
    return pull(torch.ones_like(value), retain_graph=False, create_graph=False), metrics[0]


def _step_and_transpose(
    inner: InnerLoop, params: Params, fast: Tree, support: Examples, t: Tensor, context: Context
) -> tuple[Tree, Callable[[Tree], tuple[Params, Tree]]]:
    """Return φ_{t+1} and the function from λ to ((∂step_t/∂θ)ᵀ λ, (∂step_t/∂φ)ᵀ λ)."""
    if inner.transpose is not None:
        after = inner.step(params, fast, support, t, context)
        return after, partial(inner.transpose, params, fast, support, t, context)
    after, pull, *_ = vjp(lambda p, f: inner.step(p, f, support, t, context), params, fast)
    return after, partial(pull, retain_graph=False, create_graph=False)  # it is called once


def single_task_gradient(grads: Params, metrics: dict[str, Tensor]) -> MetaGradient:
    """Return the gradient of one task as a sum over tasks."""
    one = torch.ones((), dtype=torch.int64, device=device_of(grads))
    return MetaGradient(grads, {name: value.detach() for name, value in metrics.items()}, one)


def _add(a: Tree, b: Tree) -> Tree:
    return tree_map(torch.add, a, b)


def _scale(tree: Tree, by: Tensor) -> Tree:
    return tree_map(lambda leaf: leaf * by, tree)
