"""Act in an environment: all episodes of a batch of one task in lockstep, by numbers that their address determines.

What a task's batch number j (the inner step that it is for) draws is a function of the task's key, j, the episode and
the step, so that a batch that is lost is collected again to the bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metatrain.models.dropout import fold, uniform
from metatrain.reinforcement.policies import action_numbers
from tasks.environments.protocol import Discrete, Environment, EnvironmentTask, State
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


class Perceived(NamedTuple):
    """What one step of a trial is decided by, beside the memory: of one episode, without leading dimensions.

    Before the first step the reward is 0, and so is the action, or it has the number −1.
    """

    observation: Tensor
    """[O]"""
    action: Tensor
    """The one before: [size], or its number."""
    reward: Tensor
    """The one before."""
    begins: Tensor
    """1 at the first step of an episode, else 0."""


ActWithMemory = Callable[[Any, Perceived, int, Tensor], tuple[Tensor, Tree, Any]]
"""(memory, perceived, number of the step in the trial, numbers [n]) -> (action, what to keep, memory)."""


class Trial(NamedTuple):
    """Episodes that one learner acted in one after the other, with its memory; and what it perceived [E, T, ...]."""

    trajectories: Trajectories
    perceived: Perceived


def roll_out_trial(
    environment: Environment, act: ActWithMemory, memory: Any, task: EnvironmentTask, batch: Tensor, episodes: int
) -> Trial:
    """Act in `episodes` episodes of one task, with a memory that lasts from one to the next (Duan et al. 2016, fig. 1).

    After the end of an episode nothing is remembered until the next one begins. Passes through vmap over tasks.
    """
    parameters, key = task.parameters, fold(task.key, batch)
    first, actions, steps = _numbers(environment, key, episodes, _dtype_of(parameters))
    one = torch.ones((), dtype=steps.dtype, device=steps.device)
    action, reward = _no_action(environment, one), torch.zeros_like(one)
    rows, seen = [], []
    for e in range(episodes):
        # A leading dimension of one episode: under vmap no scalar can index a table.
        state, alive, begins = environment.reset(parameters, first[e : e + 1]), one, one
        for t in range(environment.horizon):
            perceived = Perceived(environment.observe(parameters, state).squeeze(0), action, reward, begins)
            chosen, told, after = act(memory, perceived, e * environment.horizon + t, actions[e, t])
            state, gained, done = environment.step(parameters, state, chosen[None], steps[e, t : t + 1])
            gained = gained.squeeze(0) * alive
            seen.append(perceived)
            rows.append(Trajectories(perceived.observation, chosen, gained, alive, told))
            memory = tree_map(partial(torch.where, alive > 0), after, memory)
            action, reward = torch.where(alive > 0, chosen, action), torch.where(alive > 0, gained, reward)
            alive, begins = alive * (~done.squeeze(0)).to(alive.dtype), torch.zeros_like(one)
    shape = episodes, environment.horizon

    def by_episode(*leaves: Tensor) -> Tensor:
        return torch.stack(leaves).view(*shape, *leaves[0].shape)

    whole: Trial = tree_map(by_episode, *map(Trial, rows, seen))
    return whole


def _no_action(environment: Environment, like: Tensor) -> Tensor:
    actions = environment.actions
    if isinstance(actions, Discrete):
        return torch.full_like(like, -1, dtype=torch.int64)
    return like.new_zeros(actions.size)


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
