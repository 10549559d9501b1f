"""Lift functions of one task to a batch of tasks: by a loop or `torch.func.vmap`, eager or compiled.

Algorithms are written for one task; only this module applies them to batches. Results are sums in index order.

A computation that can be compiled is given as *stages*, a NamedTuple of functions (an inner step, its transpose, ...),
and a Python function `run` that calls them any number of times. Each stage is compiled once, so that compiling a
thousand inner steps takes no longer than compiling one. Every stage is called as

    stage(params, t, context, *others)     params and the inner step t are the same for all tasks, the rest is a task's
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch.func import vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from metatrain.engine.compilation import Stage, compile_stages
from metatrain.engine.convolutions import FastConvolutions
from metatrain.engine.precision import Precision, matmul_precision
from metatrain.models.memory_format import channels_last, default_memory_format
from metatrain.models.normalization import unfused_norm
from metatrain.types import Context, Params
from tasks.types import TaskSpec, Tree


@dataclass(frozen=True)
class Engine:
    """Apply functions of one task to many: `vmap` over `chunk` tasks at a time (None: all), or a `loop` over them.

    With `compile`, stages are compiled: the same sums, by other kernels. `precision` is that of matrix products and
    convolutions; parameters and gradients keep theirs.
    """

    vectorize: Literal["vmap", "loop"] = "loop"
    compile: bool = False
    chunk: int | None = None
    precision: Precision = "float32"

    def for_acting(self, spec: TaskSpec) -> "Engine":
        """Return the engine by which tasks are acted in and scored: vmap does not pass through simulators."""
        simulated = getattr(spec.environment, "simulated", False)
        return replace(self, vectorize="loop", chunk=None, compile=False) if simulated else self

    # Under no_grad the outermost transform builds no graph; the transforms inside build what they need.
    @torch.no_grad()
    def map(self, function: Callable[..., Tree], params: Params, tasks: Tree, context: Context) -> Tree:
        """Return `function(params, task, context)` of every task, stacked: [B, ...]."""
        with matmul_precision(self.precision, device_of(tasks)):
            if self.vectorize == "vmap":
                parts = [_apply_vmap(function, params, *chunk) for chunk in self._chunks(tasks, context)]
                return parts[0] if len(parts) == 1 else tree_map(lambda *leaves: torch.cat(leaves), *parts)
            results = [function(params, *one) for one in _iterate_tasks(tasks, context)]
            return tree_map(lambda *leaves: torch.stack(leaves), *results)

    @torch.no_grad()
    def sum(self, stages: Any, run: Callable[..., Tree], params: Params, tasks: Tree, context: Context) -> Tree:
        """Sum `run(stages, params, task, context)` over all tasks, in index order."""
        if self.compile:  # compiled code expects one memory format, and parameters in one order
            tasks = tree_map(torch.Tensor.contiguous, tasks)
            params = {name: params[name].contiguous() for name in sorted(params)}
        with matmul_precision(self.precision, device_of(tasks)):
            if self.vectorize == "vmap":
                chunks = self._chunks(tasks, context)
                return _add_in_order(self._sum_of_chunk(stages, run, params, *chunk) for chunk in chunks)
            if self.compile:
                lay_out = channels_last if device_of(tasks).type == "cpu" else torch.Tensor.contiguous
                params = tree_map(lay_out, params)
                first = next(_iterate_tasks(tasks, context))
                stages = compile_stages(stages, _keep_stage, lay_out, self.precision, run, params, *first)
            total = _add_in_order(run(stages, params, *one) for one in _iterate_tasks(tasks, context))
            # Gradients of images laid out channels last are laid out so as well.
            return tree_map(torch.Tensor.contiguous, total)

    @torch.no_grad()
    def gradient_of_sum(self, loss: Callable[..., Tree], params: Params, tasks: Tree, context: Context) -> Tree:
        """Return (∇_θ Σ loss, Σ metrics) over all tasks, of loss(params, task, context) -> (loss, metrics), by vmap.

        The gradient of the sum, not the sum of gradients: none of a single task is held.
        """
        with matmul_precision(self.precision, device_of(tasks)):
            return _add_in_order(_gradient_of_chunk(loss, params, *chunk) for chunk in self._chunks(tasks, context))

    def _sum_of_chunk(
        self, stages: Any, run: Callable[..., Tree], params: Params, tasks: Tree, context: Context
    ) -> Tree:
        if self.compile:
            as_given = torch.Tensor.contiguous
            stages = compile_stages(stages, _vmap_stage, as_given, self.precision, run, params, tasks, context)
            each = run(stages, params, tasks, context)
        else:
            each = _apply_vmap(partial(run, stages), params, tasks, context)
        return tree_map(lambda leaf: leaf.sum(0), each)

    def _chunks(self, tasks: Tree, context: Context) -> Iterator[tuple[Tree, Context]]:
        count = len(context.noise)
        size = self.chunk or count
        for start in range(0, count, size):
            part = slice(start, start + size)
            yield tree_map(lambda leaf, part=part: leaf[part], tasks), Context(context.step, context.noise[part])


def _gradient_of_chunk(loss: Callable[..., Tree], params: Params, tasks: Tree, context: Context) -> Tree:
    def total(params: Params) -> Tree:
        losses, metrics = _apply_vmap(loss, params, tasks, context)
        return losses.sum(0), metrics

    value, pull, *metrics = vjp(total, params, has_aux=True)
    (gradient,) = pull(torch.ones_like(value), retain_graph=False, create_graph=False)
    return gradient, tree_map(lambda leaf: leaf.detach().sum(0), metrics[0])


def _apply_vmap(function: Callable[..., Tree], params: Params, tasks: Tree, context: Context) -> Tree:
    with unfused_norm(), default_memory_format():
        return vmap(function, in_dims=(None, 0, Context(None, 0)))(params, tasks, context)  # type: ignore[arg-type]


def _keep_stage(stage: Stage) -> Stage:
    """Return `stage` of one task, for compiling."""

    def of_one(params: Params, t: torch.Tensor, context: Context, *others: Tree) -> Tree:
        faster = FastConvolutions() if device_of(others).type == "cpu" else nullcontext()
        with unfused_norm(), default_memory_format(), faster:
            return stage(params, t, context, *others)

    return of_one


def _vmap_stage(stage: Stage) -> Stage:
    """Return `stage` over a leading dimension of tasks."""

    def of_many(params: Params, t: torch.Tensor, context: Context, *others: Tree) -> Tree:
        dims = (None, None, Context(None, 0), *(0 for _ in others))  # type: ignore[arg-type]
        with unfused_norm(), default_memory_format():
            return vmap(stage, in_dims=dims)(params, t, context, *others)

    return of_many


def _add_in_order(results: Iterator[Tree]) -> Tree:
    total = next(results)
    for result in results:
        total = tree_map(torch.add, total, result)
    return total


def _iterate_tasks(tasks: Tree, context: Context) -> Iterator[tuple[Tree, Context]]:
    """Yield the tasks of a batch one by one, each with its own noise key."""
    for j in range(len(context.noise)):
        yield tree_map(lambda leaf, j=j: leaf[j], tasks), Context(context.step, context.noise[j])


def device_of(tree: Tree) -> torch.device:
    """Return the device of the first tensor of `tree`."""
    found: torch.device = tree_leaves(tree)[0].device
    return found
