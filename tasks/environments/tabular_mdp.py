"""Act in a random Markov decision process of a few states (Duan et al. 2016, "RL²", §3.2)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.environments.protocol import Discrete, Transition


class Tables(NamedTuple):
    """One process: p(s' | s, a) [S, A, S], and the mean reward of a in s [S, A]."""

    transitions: Tensor
    rewards: Tensor


@dataclass(frozen=True)
class TabularMDP:
    """The state is a number, at first 0, observed one-hot; rewards are normal around their means.

    An episode has `horizon` steps.
    """

    states: int = 10
    choices: int = 5
    horizon: int = 10
    reward_std: float = 1.0

    reset_draws = 0
    step_draws = 3

    @property
    def observation_size(self) -> int:
        return self.states

    @property
    def actions(self) -> Discrete:
        return Discrete(self.choices)

    def reset(self, parameters: Tables, numbers: Tensor) -> Tensor:
        return numbers.new_zeros(numbers.shape[:-1], dtype=torch.int64)

    def observe(self, parameters: Tables, state: Tensor) -> Tensor:
        known = torch.arange(self.states, device=state.device)
        return (state[..., None] == known).to(parameters.rewards.dtype)

    def step(self, parameters: Tables, state: Tensor, action: Tensor, numbers: Tensor) -> Transition:
        """Draw s' where its cumulative probability passes the first number; the others are a normal (Box & Muller)."""
        below = parameters.transitions[state, action].cumsum(-1) <= numbers[..., :1]
        after = below.sum(-1).clamp(max=self.states - 1)
        radius, angle = (-2 * (1 - numbers[..., 1]).log()).sqrt(), 2 * math.pi * numbers[..., 2]
        reward = parameters.rewards[state, action] + self.reward_std * radius * angle.cos()
        return Transition(after, reward, torch.zeros_like(after, dtype=torch.bool))

    def best_action(self, parameters: Tables, state: Tensor, t: int) -> Tensor:
        """Return the action of the greatest expected sum of rewards in the steps that are left (value iteration)."""
        later = torch.zeros_like(parameters.rewards[:, 0])
        for _ in range(self.horizon - 1 - t):
            later = (parameters.rewards + parameters.transitions @ later).amax(-1)
        return (parameters.rewards + parameters.transitions @ later).argmax(-1)[state]
