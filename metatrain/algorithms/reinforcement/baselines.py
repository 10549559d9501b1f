"""Baselines in environments: to act at random, and to know the task."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metatrain.models import Model
from metatrain.reinforcement.policies import environment_of
from metatrain.reinforcement.rollout import Act, ActWithMemory, mean_return, roll_out, roll_out_trial
from metatrain.types import Context, MetaGradient, Params
from tasks.environments.protocol import Discrete, EnvironmentTask, State
from tasks.types import TaskSpec, Tree


def _in_environments(self: object, spec: TaskSpec) -> bool:
    return spec.kind == "environment"


def _where_known(self: object, spec: TaskSpec) -> bool:
    return hasattr(spec.environment, "best_action")


def no_params(self: object, model: Model, spec: TaskSpec, seed: int) -> Params:
    """Return no parameters."""
    return {}


def nothing_to_learn(self: object, *_: object) -> MetaGradient:
    """Refuse to be trained. ValueError."""
    raise ValueError("algorithm.name: this baseline of environments has nothing to learn: train another")


def _score(model: Model, act: Act, task: EnvironmentTask) -> dict[str, Tensor]:
    """Return the mean return of the episodes of ONE task, and their sum."""
    found = roll_out(environment_of(model), act, task, torch.zeros_like(task.key), model.spec.episodes)
    each = mean_return(found)[None]
    return {"inner_step": torch.tensor([0]), "return": each, "total_return": model.spec.episodes * each}


def score_trial(model: Model, act: ActWithMemory, memory: Any, task: EnvironmentTask) -> dict[str, Tensor]:
    """Return the return of each episode of ONE trial, and of all until then, as scores."""
    number = torch.zeros_like(task.key)
    trial = roll_out_trial(environment_of(model), act, memory, task, number, model.spec.episodes)
    found = trial.trajectories.rewards.sum(-1)
    step = torch.arange(len(found), device=found.device)
    return {"inner_step": step, "return": found, "total_return": found.cumsum(0)}


@dataclass(frozen=True)
class RandomPolicy:
    """Act at random: by standard normal actions, or by each with the same probability."""

    transductive = False
    acts = True
    offered, init, meta_gradient = _in_environments, no_params, nothing_to_learn

    def score(self, model: Model, params: Params, task: EnvironmentTask, context: Context) -> dict[str, Tensor]:
        actions = environment_of(model).actions

        def act(observation: Tensor, state: State, t: int, numbers: Tensor) -> tuple[Tensor, Tree]:
            chosen = (numbers[..., 0] * actions.choices).long() if isinstance(actions, Discrete) else numbers
            return chosen, ()

        return _score(model, act, task)


@dataclass(frozen=True)
class OptimalPolicy:
    """Act as is best for who knows the task, which no learner does before it has acted."""

    transductive = False
    acts = True
    offered, init, meta_gradient = _where_known, no_params, nothing_to_learn

    def score(self, model: Model, params: Params, task: EnvironmentTask, context: Context) -> dict[str, Tensor]:
        environment: Any = environment_of(model)

        def act(observation: Tensor, state: State, t: int, numbers: Tensor) -> tuple[Tensor, Tree]:
            return environment.best_action(task.parameters, state, t), ()

        return _score(model, act, task)
