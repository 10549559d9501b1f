"""Act in environments of Gymnasium, whose simulators are stepped one by one, outside of torch.

Several simulators of one task make the episodes of a batch. They are kept per process and thread, and reset by a seed
that the episode's address determines.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.environments.protocol import Actions, Box, Discrete, Transition

_SEEDS = 2**31
_CONTROL_COST = 0.05


class _Kept(threading.local):
    """The calling thread's simulators, by environment."""

    def __init__(self) -> None:
        self.simulators: dict[Any, list[Any]] = {}


_kept = _Kept()


def _velocity(info: Mapping[str, Any], value: float) -> float:
    return -abs(float(info["x_velocity"]) - value)


def _direction(info: Mapping[str, Any], value: float) -> float:
    return math.copysign(1.0, value) * float(info["x_velocity"])


REWARDS = {"velocity": _velocity, "direction": _direction}
"""Rewards of a task's own, less 0.05 |a|² of clipped actions: −|v − v*|, v along the direction (Finn et al., 2017)."""


class Simulators:
    """The state of the episodes of a batch: their simulators, what was observed last, and which have not ended."""

    def __init__(self, each: list[Any], observations: Tensor) -> None:
        self.each, self.observations = each, observations
        self.alive = [True] * len(each)


@dataclass(frozen=True)
class GymnasiumEnvironment:
    """An environment by its id, such as HalfCheetah-v5, whose task is one number, which `task` says the meaning of.

    task: "velocity" or "direction" of what moves, or an attribute or a method of the environment that is set to the
    number, or called with it, before each episode. settings: of `gymnasium.make`, in order of their names. Actions are
    clipped to the bounds of the environment's.
    """

    id: str
    task: str
    horizon: int
    settings: tuple[tuple[str, Any], ...] = ()

    simulated = True
    reset_draws = 1
    step_draws = 0

    @cached_property
    def _spaces(self) -> tuple[int, Actions]:
        """Return the size of observations, and the actions. ValueError: they, or the task, are of no use here."""
        (one,) = self._simulators(1)
        observed, acted = one.observation_space, one.action_space
        size = math.prod(observed.shape or ())
        if type(observed).__name__ != "Box" or size < 1:
            raise ValueError(
                f"tasks.environment_id: {self.id} observes a {observed}, not a Box: wrap it to observe numbers"
            )
        if type(acted).__name__ == "Discrete":
            actions: Actions = Discrete(int(acted.n))
        elif type(acted).__name__ == "Box":
            actions = Box(math.prod(acted.shape))
        else:
            raise ValueError(
                f"tasks.environment_id: {self.id} takes a {acted}, not a Box or Discrete: wrap it to take one"
            )
        self._require_task(one)
        return size, actions

    def _require_task(self, one: Any) -> None:
        """Check that the task can be set. ValueError: it cannot."""
        if self.task not in REWARDS:
            if not hasattr(one.unwrapped, self.task):
                raise ValueError(
                    f"tasks.task: {self.id} has no attribute or method '{self.task}' to set a task by: name one, or "
                    f"set {' or '.join(REWARDS)}"
                )
            return
        one.reset(seed=0)
        if "x_velocity" not in one.step(np.zeros_like(one.action_space.sample()))[4]:
            raise ValueError(
                f"tasks.task: {self.id} tells no x_velocity: name an attribute or method to set the task by"
            )

    @property
    def observation_size(self) -> int:
        return self._spaces[0]

    @property
    def actions(self) -> Actions:
        return self._spaces[1]

    def reset(self, parameters: Tensor, numbers: Tensor) -> Simulators:
        """Reset a simulator per episode. parameters: the task's number [1]; numbers: [E, 1]."""
        each, observed = self._simulators(len(numbers)), []
        for one, number in zip(each, numbers[:, 0].tolist(), strict=True):
            if self.task not in REWARDS:
                _set_task(one.unwrapped, self.task, float(parameters[0]))
            observed.append(one.reset(seed=int(number * _SEEDS))[0])
        return Simulators(each, self._observations(observed, parameters))

    def observe(self, parameters: Tensor, state: Simulators) -> Tensor:
        return state.observations

    def step(self, parameters: Tensor, state: Simulators, action: Tensor, numbers: Tensor) -> Transition:
        """Step the simulators of episodes that have not ended. ValueError: what one gives is not finite."""
        value, observed, rewards, done = float(parameters[0]), [], [], []
        actions = action.detach().cpu().numpy()
        for e, one in enumerate(state.each):
            if not state.alive[e]:
                observed.append(state.observations[e].numpy())
                rewards.append(0.0)
                done.append(True)
                continue
            given = self._given(one, actions[e])
            observation, reward, terminated, _, info = one.step(given)
            if self.task in REWARDS:
                reward = REWARDS[self.task](info, value) - _CONTROL_COST * float(np.square(given).sum())
            if not math.isfinite(reward) or not np.isfinite(observation).all():
                raise ValueError(f"{self.id} gave reward {reward} or an observation that is not finite: mend its step")
            observed.append(observation)
            rewards.append(float(reward))
            done.append(bool(terminated))
            state.alive[e] = not terminated
        state.observations = self._observations(observed, parameters)
        return Transition(state, parameters.new_tensor(rewards), torch.tensor(done, device=parameters.device))

    def _observations(self, observed: list[Any], like: Tensor) -> Tensor:
        flat = np.stack([np.asarray(one, dtype=np.float64).reshape(-1) for one in observed])
        return torch.from_numpy(flat).to(like)

    def _given(self, one: Any, action: Any) -> Any:
        """Return an action as the environment takes it."""
        space = one.action_space
        if type(space).__name__ == "Discrete":
            return int(action) + int(space.start)
        return np.clip(action.reshape(space.shape), space.low, space.high).astype(space.dtype)

    def _simulators(self, count: int) -> list[Any]:
        """Return as many simulators as there are episodes; those that are missing are made."""
        key = (self.id, self.settings, self.task)  # what another task has set would last
        kept = _kept.simulators.setdefault(key, [])
        kept.extend(self._make() for _ in range(count - len(kept)))
        return kept[:count]

    def _make(self) -> Any:
        """Make one simulator, without a limit of steps of its own. ValueError: it cannot be made."""
        try:
            import gymnasium
        except ImportError as error:
            raise ValueError("tasks.name: gymnasium is not installed: pip install 'metatrain[rl]'") from error
        try:
            return gymnasium.make(self.id, max_episode_steps=-1, disable_env_checker=True, **dict(self.settings))
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            said = str(error).splitlines()[0]
            raise ValueError(
                f"tasks.environment_id: {self.id}: {said}: set another, or install what it needs"
            ) from error


def _set_task(environment: Any, name: str, value: float) -> None:
    found = getattr(environment, name)
    if callable(found):
        found(value)
    else:
        setattr(environment, name, value)
