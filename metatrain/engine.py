"""Lifting functions of one task over many, and exact gradients through inner loops.

Algorithms are written for one task. Here, and only here, they meet batches: looped over, or lifted by
`torch.func.vmap`. Results are sums in index order.

The gradient through K inner steps keeps the K + 1 sets of fast weights, not the graph: the reverse pass goes back
one step at a time and re-computes that step alone, so memory grows by parameters, whatever the network is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils._pytree import tree_map

from metatrain.models.normalization import written_out
from metatrain.types import Context, InnerLoop, MetaGradient, Params
from tasks.types import Episode, Tree

TaskLoss = Callable[[Params, Any, Context], tuple[Tensor, dict[str, Tensor]]]
"""(params, task, context) -> (loss, metrics) of one task."""


@dataclass(frozen=True)
class Engine:
    """How functions of one task are lifted: `vmap` over all of a shard, or a `loop` over its tasks."""

    vectorize: Literal["vmap", "loop"] = "loop"

    # Under no_grad the outermost transform builds no graph of its own; those within set up what they need.
    @torch.no_grad()
    def map(self, function: Callable[..., Tree], params: Params, tasks: Tree, context: Context) -> Tree:
        """`function(params, task, context)` of every task, stacked: [B, ...]."""
        if self.vectorize == "vmap":
            with written_out():
                return vmap(function, in_dims=(None, 0, Context(None, 0)))(params, tasks, context)  # type: ignore[arg-type]
        results = [function(params, *one) for one in _each(tasks, context)]
        return tree_map(lambda *leaves: torch.stack(leaves), *results)

    @torch.no_grad()
    def sum(self, function: Callable[..., Tree], params: Params, tasks: Tree, context: Context) -> Tree:
        """The sum of `function(params, task, context)` over all tasks, in index order."""
        if self.vectorize == "vmap":
            return tree_map(lambda leaf: leaf.sum(0), self.map(function, params, tasks, context))
        total: Tree = None
        for one in _each(tasks, context):
            result = function(params, *one)
            total = result if total is None else tree_map(torch.add, total, result)
        return total


def resolve_vectorize(
    setting: Literal["auto", "vmap", "loop"], convolves: bool, device: torch.device
) -> Literal["vmap", "loop"]:
    """`auto`, resolved from shapes and device kind alone.

    Under vmap a convolution whose weights differ by task becomes a grouped one, which CPUs do ten times slower than
    one after another; everything else gains from a batch.
    """
    if setting != "auto":
        return setting
    return "loop" if convolves and device.type == "cpu" else "vmap"


def unrolled_gradient(
    inner: InnerLoop, params: Params, tasks: Episode, context: Context, engine: Engine
) -> MetaGradient:
    """Σ_tasks ∇_θ Σ_t w_t L_Q(φ_t(θ)), with φ_0 = start(θ), φ_{t+1} = step(θ, φ_t): exact, through every step."""
    return engine.sum(partial(_unrolled_task_gradient, inner), params, tasks, context)  # type: ignore[no-any-return]


def loss_gradient(task_loss: TaskLoss, params: Params, tasks: Tree, context: Context, engine: Engine) -> MetaGradient:
    """Σ_tasks ∇_θ loss(θ, task), for methods without an inner loop."""

    def one(params: Params, task: Tree, context: Context) -> MetaGradient:
        grads, metrics = grad(task_loss, has_aux=True)(params, task, context)
        return _of_one_task(grads, metrics)

    return engine.sum(one, params, tasks, context)  # type: ignore[no-any-return]


def displacement(
    inner: InnerLoop,
    weights: Callable[[Tree], Params],
    params: Params,
    tasks: Episode,
    context: Context,
    engine: Engine,
) -> MetaGradient:
    """Σ_tasks θ − φ_K(θ): the way back from where the inner loop led, `weights` being the parameters within φ."""

    def one(params: Params, task: Episode, context: Context) -> MetaGradient:
        fast = inner.start(params, task.support, context)
        for t in range(inner.length):
            fast = inner.step(params, fast, task.support, t, context)
        metrics = inner.loss(params, fast, task.support, task.query, inner.length, context)[1]
        after = params | weights(fast)
        return _of_one_task({name: value - after[name] for name, value in params.items()}, metrics)

    return engine.sum(one, params, tasks, context)  # type: ignore[no-any-return]


def _unrolled_task_gradient(inner: InnerLoop, params: Params, task: Episode, context: Context) -> MetaGradient:
    """Reverse mode by hand: λ_t = w_t ∂L_t/∂φ_t + (∂step_t/∂φ_t)ᵀ λ_{t+1}, θ gathering its part on the way."""
    support, last = task.support, inner.length - 1
    trail, pull_last = [inner.start(params, support, context)], None
    for t in range(inner.length):
        if t == last and inner.transpose is None:
            # The last step is the first to be transposed: its graph is kept, and is the only one there is.
            fast, pull_last = _step_and_transpose(inner, params, trail[-1], support, t, context)
        else:
            fast = inner.step(params, trail[-1], support, t, context)
        trail.append(fast)

    grads, adjoint, metrics = _loss_gradients(inner, params, trail[-1], task, inner.length, context)
    weights = None if inner.weights is None else inner.weights(context.step)
    if weights is not None:
        grads, adjoint = _scaled((grads, adjoint), weights[inner.length])
    for t in reversed(range(inner.length)):
        if inner.transpose is not None:
            to_params, adjoint = inner.transpose(params, trail[t], support, t, context, adjoint)
        else:
            pull = pull_last or _step_and_transpose(inner, params, trail[t], support, t, context)[1]
            pull_last = None
            to_params, adjoint = pull(adjoint)
        grads = _added(grads, to_params)
        if weights is not None:
            loss_to_params, loss_to_fast, _ = _loss_gradients(inner, params, trail[t], task, t, context)
            grads = _added(grads, _scaled(loss_to_params, weights[t]))
            adjoint = _added(adjoint, _scaled(loss_to_fast, weights[t]))
    pull = vjp(lambda p: inner.start(p, support, context), params)[1]
    return _of_one_task(_added(grads, pull(adjoint)[0]), metrics)


def _loss_gradients(
    inner: InnerLoop, params: Params, fast: Tree, task: Episode, t: int, context: Context
) -> tuple[Params, Tree, dict[str, Tensor]]:
    """(∂L/∂θ, ∂L/∂φ, metrics) of the query loss after t steps."""

    def loss(params: Params, fast: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        return inner.loss(params, fast, task.support, task.query, t, context)

    (to_params, to_fast), metrics = grad(loss, argnums=(0, 1), has_aux=True)(params, fast)
    return to_params, to_fast, metrics


def _step_and_transpose(
    inner: InnerLoop, params: Params, fast: Tree, support: Tree, t: int, context: Context
) -> tuple[Tree, Callable[[Tree], tuple[Params, Tree]]]:
    """φ_{t+1}, and the function from λ to ((∂step_t/∂θ)ᵀ λ, (∂step_t/∂φ)ᵀ λ)."""
    after, pull, *_ = vjp(lambda p, f: inner.step(p, f, support, t, context), params, fast)
    return after, pull


def _of_one_task(grads: Params, metrics: dict[str, Tensor]) -> MetaGradient:
    one = torch.ones((), dtype=torch.int64, device=next(iter(grads.values())).device)
    return MetaGradient(grads, {}, {name: value.detach() for name, value in metrics.items()}, one)


def _added(a: Tree, b: Tree) -> Tree:
    return tree_map(torch.add, a, b)


def _scaled(tree: Tree, by: Tensor) -> Tree:
    return tree_map(lambda leaf: leaf * by, tree)


def _each(tasks: Tree, context: Context) -> list[tuple[Tree, Context]]:
    """The tasks of a batch one by one, each with its own noise key."""
    return [
        (tree_map(lambda leaf, j=j: leaf[j], tasks), Context(context.step, context.noise[j]))
        for j in range(len(context.noise))
    ]
