"""Act in an environment: all episodes of a batch of one task in lockstep, by numbers that their address determines.

What a task's batch number j (the inner step that it is for) draws is a function of the task's key, j, the episode and
the step, so that a batch that is lost is collected again to the bit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metatrain.models.dropout import fold, uniform
from metatrain.reinforcement.policies import action_numbers
from tasks.environments.protocol import Environment, EnvironmentTask, State
from tasks.types import Tree


class Trajectories(NamedTuple):
    """The steps of E episodes of one task, each of T steps, of which those after its end have a mask of 0."""

    observations: Tensor
    """[E, T, O]"""
    actions: Tensor
    """[E, T, size], or the numbers of actions [E, T]"""
    rewards: Tensor
    """[E, T], 0 after the end"""
    mask: Tensor
    """[E, T]: 1 for a step of the episode, else 0"""
    policy: Tree
    """What `act` told beside each action: the distribution that it was drawn from, [E, T, ...]."""


Act = Callable[[Tensor, State, int, Tensor], tuple[Tensor, Tree]]
"""(observations [E, O], state, t, numbers [E, n]) -> (actions, what to keep beside them: a tree [E, ...])."""


def roll_out(environment: Environment, act: Act, task: EnvironmentTask, batch: Tensor, episodes: int) -> Trajectories:
    """Act in `episodes` episodes of one task. batch: the batch's number, an int64 scalar.

    Passes through vmap over tasks. Everything that acts calls this one function, so that environments of a simulator,
    which no vmap can take, have one place to be stepped in.
    """
    parameters, key = task.parameters, fold(task.key, batch)
    first, actions, steps = _numbers(environment, key, episodes, _dtype_of(parameters))
    state = environment.reset(parameters, first)
    alive, rows = torch.ones(episodes, dtype=steps.dtype, device=steps.device), []
    for t in range(environment.horizon):
        observation = environment.observe(parameters, state)
        action, told = act(observation, state, t, actions[:, t])
        state, reward, done = environment.step(parameters, state, action, steps[:, t])
        rows.append(Trajectories(observation, action, reward * alive, alive, told))
        alive = alive * (~done).to(alive.dtype)
    return tree_map(lambda *leaves: torch.stack(leaves, 1), *rows)  # type: ignore[no-any-return]


def _numbers(environment: Environment, key: Tensor, episodes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of all first states [E, n], actions [E, T, n] and steps [E, T, n]."""
    steps = environment.horizon
    first = uniform(fold(key, 0), torch.Size((episodes, environment.reset_draws)), key.device)
    actions = action_numbers(environment.actions, fold(key, 1), episodes, steps)
    each = uniform(fold(key, 2), torch.Size((episodes, steps, environment.step_draws)), key.device)
    return first.to(dtype), actions.to(dtype), each.to(dtype)


def _dtype_of(parameters: Any) -> torch.dtype:
    """Return the type of real numbers of a task's parameters."""
    found: torch.dtype = next(leaf.dtype for leaf in tree_leaves(parameters) if leaf.is_floating_point())
    return found


def mean_return(trajectories: Trajectories) -> Tensor:
    """Return the mean over episodes of the undiscounted sum of rewards: a scalar."""
    return trajectories.rewards.sum(-1).mean()
