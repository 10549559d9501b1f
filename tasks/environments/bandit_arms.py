"""Pull the arms of a Bernoulli bandit, of which a policy sees nothing (Duan et al. 2016, "RL²", §3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.environments.protocol import Discrete, Transition


@dataclass(frozen=True)
class BanditArms:
    """An episode is `horizon` pulls; an arm a pays 1 with probability parameters[a], else 0.

    Parameters: [arms]. What is observed is a 1 at every step.
    """

    arms: int = 5
    horizon: int = 10

    observation_size = 1
    reset_draws = 0
    step_draws = 1

    @property
    def actions(self) -> Discrete:
        return Discrete(self.arms)

    def reset(self, parameters: Tensor, numbers: Tensor) -> Tensor:
        return parameters.new_ones(*numbers.shape[:-1], 1)

    def observe(self, parameters: Tensor, state: Tensor) -> Tensor:
        return state

    def step(self, parameters: Tensor, state: Tensor, action: Tensor, numbers: Tensor) -> Transition:
        paid = numbers[..., 0] < parameters[action]
        return Transition(state, paid.to(parameters.dtype), torch.zeros_like(paid))

    def best_action(self, parameters: Tensor, state: Tensor, t: int) -> Tensor:
        return parameters.argmax(-1).expand(state.shape[:-1])
