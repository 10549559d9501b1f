"""Move a point in the plane to a goal that the policy is not shown (Finn, Abbeel & Levine 2017, §5.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.environments.protocol import Box, Transition

_REACH = 0.1
"""The farthest that a step goes along each axis."""
_NEAR = 0.01
"""The distance along each axis at which the goal is reached."""


@dataclass(frozen=True)
class PointNavigation:
    """The state is a position, at first (0, 0), which is all that is observed; parameters: the goal [2].

    An action a moves it by 0.1 · clip(a, −1, 1); the reward is minus the distance to the goal after that. An episode
    ends within 0.01 of the goal along both axes, or at the horizon.
    """

    horizon: int = 100

    observation_size = 2
    actions = Box(2)
    reset_draws = 0
    step_draws = 0

    def reset(self, parameters: Tensor, numbers: Tensor) -> Tensor:
        return parameters.new_zeros(*numbers.shape[:-1], 2)

    def observe(self, parameters: Tensor, state: Tensor) -> Tensor:
        return state

    def step(self, parameters: Tensor, state: Tensor, action: Tensor, numbers: Tensor) -> Transition:
        after = state + _REACH * action.clamp(-1, 1)
        away = after - parameters
        return Transition(after, -torch.linalg.vector_norm(away, dim=-1), (away.abs() < _NEAR).all(-1))

    def best_action(self, parameters: Tensor, state: Tensor, t: int) -> Tensor:
        return (parameters - state) / _REACH
