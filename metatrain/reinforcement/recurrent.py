"""Define policies that remember: a GRU reads what happened in a trial, and gives a policy and a value at every step."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metatrain.models import Model, Part
from metatrain.models.dropout import NO_NOISE
from metatrain.models.layers import GRUCell
from metatrain.reinforcement import policies
from metatrain.reinforcement.policies import ActionDistribution, environment_of
from metatrain.reinforcement.rollout import ActWithMemory, Perceived
from metatrain.types import Params
from tasks.environments.protocol import Discrete
from tasks.types import Tree


class Told(NamedTuple):
    """What a recurrent policy says at each step, before it acts."""

    policy: ActionDistribution
    value: Tensor
    """[...]: the discounted sum of rewards that it expects in the rest of the trial."""


class Heads(nn.Module):
    """Linear layers from h to what a policy is made of, [..., outputs], and to V [...]."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.policy, self.value = nn.Linear(hidden, outputs), nn.Linear(hidden, 1)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(h), self.value(h).squeeze(-1)


@dataclass(frozen=True)
class RecurrentPolicy:
    """h_t = GRU([f(o_t), a_{t−1}, r_{t−1}, begins_t], h_{t−1}); linear layers from h_t give a policy and V.

    Pure functions of the parameters "recurrent.…", those of the network f and, for real actions, of log σ.
    """

    model: Model
    hidden: int

    def initial(self, seed: int) -> Params:
        """Return the parameters before the first step; all actions are then almost as probable."""
        found = self.model.initial(head=False)
        for number, part in enumerate((self._input, self._cell, self._heads)):
            found |= part.initial(3 * seed + number)
        found |= {name: 0.01 * value for name, value in found.items() if name.startswith("recurrent.heads.policy.")}
        actions = environment_of(self.model).actions
        return found if isinstance(actions, Discrete) else found | {policies.LOG_STD: torch.zeros(actions.size)}

    def start(self, params: Params) -> Tensor:
        """Return h_0 [hidden], zeros."""
        return params["recurrent.cell.state.weight"].new_zeros(self.hidden)

    def act_by(self, params: Params) -> ActWithMemory:
        """Return how the policy at `params` acts."""

        def act(h: Tensor, perceived: Perceived, number: int, numbers: Tensor) -> tuple[Tensor, Tree, Tensor]:
            h = self._cell(params, self._read(params, perceived), h)
            told = self._tell(params, h)
            return policies.sample(told.policy, numbers), told, h

        return act

    def along(self, params: Params, perceived: Perceived, mask: Tensor) -> Told:
        """Return what the policy at `params` says along the steps of a trial [N, ...]; those with mask 0 it forgets."""
        read, h = self._read(params, perceived), self.start(params)
        states = []
        for t in range(len(mask)):
            states.append(self._cell(params, read[t], h))
            h = torch.where(mask[t] > 0, states[-1], h)
        return self._tell(params, torch.stack(states))

    @property
    def _input(self) -> Part:
        actions = environment_of(self.model).actions
        before = actions.choices if isinstance(actions, Discrete) else actions.size
        return Part("recurrent.input.", partial(nn.Linear, self.model.num_features + before + 2, 3 * self.hidden))

    @property
    def _cell(self) -> Part:
        return Part("recurrent.cell.", partial(GRUCell, self.hidden))

    @property
    def _heads(self) -> Part:
        return Part("recurrent.heads.", partial(Heads, self.hidden, self.model.spec.y[0]))

    def _read(self, params: Params, perceived: Perceived) -> Tensor:
        """Return what the cell takes from [f(o), a, r, begins] of any number of steps: [..., 3 hidden]."""
        observations, actions = perceived.observation, environment_of(self.model).actions
        leading = observations.shape[:-1]
        silent = torch.full((), NO_NOISE, device=observations.device)
        features = self.model.embed(params, observations.reshape(-1, observations.shape[-1]), silent)
        action = perceived.action
        if isinstance(actions, Discrete):
            numbers = torch.arange(actions.choices, device=action.device)
            action = (action[..., None] == numbers).to(features.dtype)
        flags = torch.stack([perceived.reward, perceived.begins], -1)
        found: Tensor = self._input(params, torch.cat([features.view(*leading, -1), action, flags], -1))
        return found

    def _tell(self, params: Params, h: Tensor) -> Told:
        outputs, value = self._heads(params, h)
        if isinstance(environment_of(self.model).actions, Discrete):
            return Told(policies.Categorical(outputs), value)
        return Told(policies.normal_policy(outputs, params), value)
