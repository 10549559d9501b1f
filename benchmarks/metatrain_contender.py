"""Compute the benchmark's meta-gradients with metatrain, compiled and eager.

On one thread it runs the algorithm in this process. For the whole machine it does what a run does, on a local Ray
cluster with one worker per core: broadcast, task sampling, gathering and the ordered sum are counted for metatrain
only. The other libraries have their tasks in memory and let torch use every core.
"""

import atexit
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

import torch

from benchmarks.cases import Case, config_of, model_of
from metatrain.algorithms.base import Algorithm
from metatrain.algorithms.optimization.maml import MAML
from metatrain.engine import Engine, resolve_vectorize
from metatrain.evaluation.evaluate import make_shards
from metatrain.models import Model
from metatrain.models.dropout import NO_NOISE
from metatrain.types import Context, Params, ShardRequest
from tasks.types import Episode

_SHARDS_A_WORKER = 8
"""Enough shards that workers end together, few enough that each has several tasks."""


def metatrain(case: Case, params: Params, tasks: Episode) -> Callable[[], Params]:
    """Return the gradient function with compiled inner steps."""
    return _prepared(case, params, tasks, compiled=True)


def metatrain_eager(case: Case, params: Params, tasks: Episode) -> Callable[[], Params]:
    """Return the gradient function without compilation."""
    return _prepared(case, params, tasks, compiled=False)


def tasks_in_flight(case: Case) -> int:
    """Return the number of tasks whose fast weights one process holds at once: a whole meta-batch under vmap."""
    return case.meta_batch if _vectorize(case) == "vmap" else 1


def _prepared(case: Case, params: Params, tasks: Episode, compiled: bool) -> Callable[[], Params]:
    if case.threads == 1:
        return in_process(case, params, tasks, Engine(_vectorize(case), compiled))
    return _on_ray(case, params, compiled)


def _vectorize(case: Case) -> Literal["vmap", "loop"]:
    """Return what `auto` resolves to on a CPU."""
    return resolve_vectorize("auto", case.tasks == "images", torch.device("cpu"))


def in_process(case: Case, params: Params, tasks: Episode, engine: Engine) -> Callable[[], Params]:
    """Return the meta-gradient function of a worker for given tasks, on the device of `params`."""
    return compute_with(MAML(case.inner_lr, case.inner_steps), case, params, tasks, engine)


def compute_with(
    algorithm: Algorithm, case: Case, params: Params, tasks: Episode, engine: Engine, model: Model | None = None
) -> Callable[[], Params]:
    """Return the meta-gradient function of an algorithm on the network (or on `model`) and the tasks of a case."""
    like = next(iter(params.values()))
    model = (model or model_of(case)).to(like.device, like.dtype)
    silent = torch.full((case.meta_batch,), NO_NOISE, device=like.device)
    context = Context(torch.tensor(0, device=like.device), silent)
    return lambda: algorithm.meta_gradient(model, params, tasks, context, engine).grads


def _on_ray(case: Case, params: Params, compiled: bool) -> Callable[[], Params]:
    from cluster.connection import connect_ray
    from cluster.executor import RayExecutor

    workers = os.cpu_count() or 1
    # Two shards or more per worker, so that it computes one while the reply to another travels.
    shard_size = max(1, case.meta_batch // (_SHARDS_A_WORKER * workers))
    engine = {"vectorize": _vectorize(case), "threads": 1, "compile": "on" if compiled else "off"}
    executing = {"name": "ray", "workers": workers, "shard_size": shard_size}
    config = config_of(case, engine=engine, executor=executing)
    stack = ExitStack()
    atexit.register(stack.close)
    stack.enter_context(connect_ray(config.executor))
    executor = RayExecutor(config)
    stack.callback(executor.close)
    executor.pids()
    shards = make_shards(0, case.meta_batch, shard_size)
    return lambda: executor.sum(ShardRequest("gradient", "train", 0), params, shards).grads
