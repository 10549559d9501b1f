"""Run the outer loop: the only code that changes parameters.

`train` owns the parameters and the optimiser and yields after every step; its caller records, evaluates, checkpoints
and stops.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metatrain.algorithms.updates import Compute, Descend, Move, Update, descend_once
from metatrain.errors import Diverged
from metatrain.evaluation.evaluate import make_shards
from metatrain.settings import GroupSettings, OuterSettings
from metatrain.training.snapshots import check_optimizer
from metatrain.training.tree_sum import mean_metrics
from metatrain.types import Executor, MetaGradient, Metrics, Params, Shard, ShardRequest

_OPTIMIZER_HYPERPARAMETERS = ("momentum", "weight_decay")
"""Optimiser hyperparameters that the configuration overrides on resume."""
REST = "rest"
"""The group of all parameters that belong to no other group."""


@dataclass
class Best:
    """The best validation score so far, and the step that reached it; higher is better (mse enters negated)."""

    step: int = -1
    score: float = -math.inf


@dataclass
class TrainState:
    """Where training stands. Valid until the next iteration of `train`; `snapshot` copies.

    validation_due: the validation of this step was stopped, so that a resume begins with it.
    """

    step: int
    next_task: int
    params: Params
    optimizers: dict[str, torch.optim.Optimizer]
    """By group."""
    best: Best
    validation_due: bool = False

    def snapshot(self) -> dict[str, Any]:
        """Copy the state to a tree of tensors and plain values, from which `restore` continues bit for bit."""
        return {
            "step": self.step,
            "next_task": self.next_task,
            "params": {name: value.detach().clone() for name, value in self.params.items()},
            "optimizers": {group: deepcopy(one.state_dict()) for group, one in self.optimizers.items()},
            "best": {"step": self.best.step, "score": self.best.score},
            "validation_due": self.validation_due,
        }


def initial_state(params: Params, settings: OuterSettings) -> TrainState:
    """Return the state of step 0. ValueError: a group of `outer.groups` has no parameters."""
    owned = {name: value.detach().clone() for name, value in params.items()}
    optimizers = {
        group: build_optimizer([owned[name] for name in names], group_settings(settings, group))
        for group, names in group_names(owned, settings).items()
    }
    return TrainState(0, 0, owned, optimizers, Best())


def restore(snapshot: dict[str, Any], settings: OuterSettings) -> TrainState:
    """Return the state of a `snapshot`; they share no tensor.

    Momentum and weight decay come from `settings`, as learning rates do: a member of a population has its own.
    """
    state = initial_state(snapshot["params"], settings)
    state.step, state.next_task = snapshot["step"], snapshot["next_task"]
    for group, one in state.optimizers.items():
        now = [
            {name: leaves[name] for name in _OPTIMIZER_HYPERPARAMETERS if name in leaves} for leaves in one.param_groups
        ]
        kept = snapshot["optimizers"].get(group)
        check_optimizer(kept, one, state.step)
        one.load_state_dict(deepcopy(kept))
        for leaves, settings_now in zip(one.param_groups, now, strict=True):
            leaves.update(settings_now)
    state.best = Best(**snapshot["best"])
    state.validation_due = snapshot.get("validation_due", False)  # unknown to checkpoints of 0.1
    return state


def group_names(params: Params, settings: OuterSettings) -> dict[str, list[str]]:
    """Return each group's parameter names, sorted: a parameter belongs to the group of its longest matching prefix."""
    members: dict[str, list[str]] = {group: [] for group in (REST, *settings.groups)}
    for name in sorted(params):
        prefixes = [group for group in settings.groups if name.startswith(f"{group}.")]
        members[max(prefixes, key=len, default=REST)].append(name)
    for group in settings.groups:
        known = ", ".join(sorted({".".join(name.split(".")[:2]) for name in params}))
        if not members[group]:
            raise ValueError(f"outer.groups.{group}: no parameter begins with '{group}.': they begin with {known}")
    return {group: names for group, names in members.items() if names}


def group_settings(settings: OuterSettings, group: str) -> GroupSettings:
    """Return the optimiser settings of `group`."""
    return settings.default_group if group == REST else settings.groups[group]


def build_optimizer(leaves: list[Tensor], settings: GroupSettings) -> torch.optim.Optimizer:
    """Build a `torch.optim` optimiser over `leaves`."""
    if settings.optimizer in ("adam", "adamw"):
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        return kind(leaves, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(leaves, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def learning_rate(settings: OuterSettings, step: int, group: str = REST) -> float:
    """Return the learning rate at step 0, 1, …: a pure function, so that a resumed run needs no scheduler state."""
    risen = 1.0 if step >= settings.warmup else (step + 1) / (settings.warmup + 1)
    return risen * _scheduled(settings, step, group)


def _scheduled(settings: OuterSettings, step: int, group: str) -> float:
    done = step / settings.steps
    first, last = group_settings(settings, group).lr, group_settings(settings, group).final_lr
    match settings.schedule:
        case "constant":
            return first
        case "linear":
            return first + (last - first) * done
        case "cosine":
            return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
        case "halving":
            return first * 0.5 ** (step // settings.halve_every)


def clip(params: Params, settings: OuterSettings) -> float:
    """Clip the gradients in place, elementwise and then by norm; return the norm before."""
    leaves = [params[name] for name in sorted(params)]
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
    if settings.clip_value is not None:
        torch.nn.utils.clip_grad_value_(leaves, settings.clip_value)
    if settings.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(leaves, settings.clip_norm)
    return float(norm)


def apply(state: TrainState, gradient: MetaGradient, settings: OuterSettings) -> Metrics:
    """Take one optimiser step along the mean meta-gradient; return the step's metrics."""
    for name, value in state.params.items():
        value.grad = gradient.grads[name] / gradient.num_tasks
    norm = clip(state.params, settings)
    rates = {}
    for group, optimizer in state.optimizers.items():
        lr = learning_rate(settings, state.step, group)
        rates["lr" if group == REST else f"lr.{group}"] = lr
        for leaves in optimizer.param_groups:
            leaves["lr"] = lr
        optimizer.step()
    return mean_metrics(gradient) | {"gradient_norm": norm} | rates


def with_statistics(algorithm: Any, executor: Executor, params: Params, shard_size: int) -> Params:
    """Return `params` with what the algorithm keeps of the training tasks at them: means over tasks 0, 1, ….

    They are the same for any number of workers, as sums of gradients are. Most algorithms keep nothing.
    """
    if not hasattr(algorithm, "statistics"):
        return params
    shards = make_shards(0, algorithm.statistics_tasks, shard_size)
    total = executor.sum(ShardRequest("statistics", "train", 0), params, shards)
    return params | {name: (total.grads[name] / total.num_tasks).to(params[name]) for name in algorithm.kept}


def set_statistics(state: TrainState, algorithm: Any, executor: Executor, shard_size: int) -> None:
    """Set what the algorithm keeps of the training tasks: parameters that no gradient moves."""
    for name, value in with_statistics(algorithm, executor, state.params, shard_size).items():
        if value is not state.params[name]:
            state.params[name].copy_(value)


def take_step(
    state: TrainState, update: Update, executor: Executor, settings: OuterSettings, shards: Sequence[Shard]
) -> Metrics:
    """Answer what one update asks for until it ends; return its metrics. Raises Diverged."""
    answer: MetaGradient | Metrics | None = None
    while True:
        try:
            asked = update.send(answer)
        except StopIteration as done:
            metrics: Metrics = done.value
            return metrics
        match asked:
            case Compute():
                answer = executor.sum(asked.request(state.step), asked.all_params, shards)
                if asked.kind == "gradient":
                    _require_finite(answer, state, settings)
            case Descend():
                answer = apply(state, asked.gradient, settings)
            case Move():
                answer = None
                for name, value in state.params.items():
                    value.copy_(asked.params[name])


def _require_finite(gradient: MetaGradient, state: TrainState, settings: OuterSettings) -> None:
    """Check a meta-gradient and its loss. Diverged: they are not finite."""
    finite = all(bool(torch.isfinite(grad).all()) for grad in gradient.grads.values())
    if not (finite and math.isfinite(float(gradient.metrics["loss"]))):
        raise Diverged(
            f"the loss became {float(gradient.metrics['loss'])} or its gradient did at step {state.step}, "
            f"tasks {state.next_task} to {state.next_task + settings.tasks_per_step - 1}: "
            "lower outer.lr or algorithm.inner_lr, or set outer.clip_norm"
        )


def train(
    state: TrainState,
    executor: Executor,
    settings: OuterSettings,
    shard_size: int,
    update: Callable[[Params], Update] = descend_once,
) -> Iterator[Metrics]:
    """Train `state` to step `settings.steps`; yield each step's {"loss", "accuracy", "gradient_norm", "lr"}.

    update: what a step is (`algorithms.updates`). Raises Diverged when the loss or a gradient is not finite.
    """
    while state.step < settings.steps:
        shards = make_shards(state.next_task, settings.tasks_per_step, shard_size)
        metrics = take_step(state, update(state.params), executor, settings, shards)
        state.step += 1
        state.next_task += settings.tasks_per_step
        yield metrics
