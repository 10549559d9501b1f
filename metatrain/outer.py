"""The outer loop: the one place where anything changes.

`train` owns the parameters and the optimiser, and yields after every step; what to do about it (record, evaluate,
checkpoint, stop) is its caller's affair.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from metatrain.evaluation import shards_of
from metatrain.reduction import mean_metrics
from metatrain.settings import OuterSettings
from metatrain.types import Executor, Job, MetaGradient, Metrics, Params


@dataclass
class Best:
    """The best validation score so far, and the step that reached it; higher is better (mse enters negated)."""

    step: int = -1
    score: float = -math.inf


@dataclass
class TrainState:
    """Where training stands. Valid until the next iteration of `train`; `snapshot` copies."""

    step: int
    next_task: int
    params: Params
    optimizer: torch.optim.Optimizer
    best: Best

    def snapshot(self) -> dict[str, Any]:
        """A tree of tensors and plain values from which `restore` goes on, bit for bit."""
        return {
            "step": self.step,
            "next_task": self.next_task,
            "params": {name: value.detach().clone() for name, value in self.params.items()},
            "optimizer": deepcopy(self.optimizer.state_dict()),
            "best": {"step": self.best.step, "score": self.best.score},
        }


def begin(params: Params, settings: OuterSettings) -> TrainState:
    """Step 0."""
    owned = {name: value.detach().clone() for name, value in params.items()}
    return TrainState(0, 0, owned, build_optimizer(owned, settings), Best())


def restore(snapshot: dict[str, Any], settings: OuterSettings) -> TrainState:
    """The state that `snapshot` was taken of; it shares no tensor with it."""
    state = begin(snapshot["params"], settings)
    state.step, state.next_task = snapshot["step"], snapshot["next_task"]
    state.optimizer.load_state_dict(deepcopy(snapshot["optimizer"]))
    state.best = Best(**snapshot["best"])
    return state


def build_optimizer(params: Params, settings: OuterSettings) -> torch.optim.Optimizer:
    """A `torch.optim` optimiser over the parameters in name order."""
    leaves = [params[name] for name in sorted(params)]
    if settings.optimizer == "adam":
        return torch.optim.Adam(leaves, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(leaves, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def rate(settings: OuterSettings, step: int) -> float:
    """The learning rate of step 0, 1, …: a pure function, so that a resumed run needs no scheduler's state."""
    done = step / settings.steps
    match settings.schedule:
        case "constant":
            return settings.lr
        case "linear":
            return settings.lr + (settings.final_lr - settings.lr) * done
        case "cosine":
            return settings.final_lr + (settings.lr - settings.final_lr) * (1 + math.cos(math.pi * done)) / 2
        case "halving":
            return settings.lr * 0.5 ** (step // settings.halve_every)


def clip(params: Params, settings: OuterSettings) -> float:
    """Clips the gradients in place, elementwise and then by norm; returns the norm before."""
    leaves = [params[name] for name in sorted(params)]
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
    if settings.clip_value is not None:
        torch.nn.utils.clip_grad_value_(leaves, settings.clip_value)
    if settings.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(leaves, settings.clip_norm)
    return float(norm)


def apply(state: TrainState, gradient: MetaGradient, settings: OuterSettings) -> Metrics:
    """One optimiser step along the mean meta-gradient; returns the step's metrics."""
    lr = rate(settings, state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    for name, value in state.params.items():
        value.grad = gradient.grads[name] / gradient.num_tasks
    norm = clip(state.params, settings)
    state.optimizer.step()
    return mean_metrics(gradient) | {"gradient_norm": norm, "lr": lr}


class Diverged(ArithmeticError):
    """The loss or its gradient is no longer a number."""


def train(state: TrainState, executor: Executor, settings: OuterSettings, shard_size: int) -> Iterator[Metrics]:
    """Steps `state` to `settings.steps`, yielding the metrics of each: {"loss", "accuracy", "gradient_norm", "lr"}."""
    while state.step < settings.steps:
        shards = shards_of(state.next_task, settings.tasks_per_step, shard_size)
        gradient = executor.sum(Job("gradient", "train", state.step), state.params, shards)
        finite = all(bool(torch.isfinite(grad).all()) for grad in gradient.grads.values())
        if not (finite and math.isfinite(float(gradient.metrics["loss"]))):
            raise Diverged(
                f"the loss became {float(gradient.metrics['loss'])} or its gradient did at step {state.step}, "
                f"tasks {state.next_task} to {state.next_task + settings.tasks_per_step - 1}: "
                "lower outer.lr or algorithm.inner_lr, or set outer.clip_norm"
            )
        metrics = apply(state, gradient, settings)
        state.step += 1
        state.next_task += settings.tasks_per_step
        yield metrics
