"""Serve environments of Gymnasium as tasks: one of them, whose task is a number drawn from a range or from choices."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tasks.environments.distribution import EnvironmentTasks
from tasks.environments.gymnasium_env import GymnasiumEnvironment
from tasks.environments.shape import EnvironmentShape
from tasks.random import Reals
from tasks.sources.many_sizes import require_count
from tasks.types import Progress, Split

_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Gymnasium:
    """Environments `environment`, such as HalfCheetah-v5 or PACKAGE.MODULE:ID, with a number for each task.

    The number is uniform in [low, high), or one of `choices`. `task` says what it is: the "velocity" or "direction" of
    what moves, by which rewards are computed, or an attribute or method of the environment that is set to it. settings:
    of `gymnasium.make`. An episode has at most `horizon` steps.
    """

    environment_id: str = "HalfCheetah-v5"
    task: str = "velocity"
    low: float = 0.0
    high: float = 2.0
    choices: tuple[float, ...] = ()
    horizon: int = 100
    settings: dict[str, Any] = field(default_factory=dict)

    shape = EnvironmentShape
    draws = 1

    def __post_init__(self) -> None:
        if not self.environment_id:
            raise ValueError("environment_id: which environment is not said: set it, such as to HalfCheetah-v5")
        require_count("horizon", self.horizon)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"low: {self.low:g} to {self.high:g} is no range: set low below high")
        if not all(math.isfinite(one) for one in self.choices):
            raise ValueError("choices: some are no finite numbers: give finite ones")
        drawn = self.choices or (self.low, self.high)
        if self.task == "direction" and not (min(drawn) < 0 < max(drawn) and 0 not in self.choices):
            raise ValueError(f"choices: {list(drawn)} are not two directions: set [-1, 1]")
        odd = [name for name, value in self.settings.items() if not isinstance(value, _PLAIN)]
        if odd:
            raise ValueError(f"settings.{odd[0]}: neither a number nor text: set one")

    @property
    def environment(self) -> GymnasiumEnvironment:
        """Return the environment that all tasks share."""
        return GymnasiumEnvironment(self.environment_id, self.task, self.horizon, tuple(sorted(self.settings.items())))

    def parameters(self, numbers: Reals) -> Tensor:
        """Return each task's number [B, 1], of numbers in [0, 1) [B, 1]."""
        if self.choices:
            return torch.tensor(self.choices)[torch.from_numpy(numbers * len(self.choices)).long()].float()
        return torch.from_numpy(self.low + (self.high - self.low) * numbers).float()

    def prepare(self, progress: Progress) -> str:
        """Return a description; there is nothing to prepare."""
        drawn = f"one of {list(self.choices)}" if self.choices else f"{self.low:g} to {self.high:g}"
        return f"gymnasium: {self.environment_id}, {self.task} {drawn}"

    def distribution(self, split: Split, episode: EnvironmentShape, seed: int) -> EnvironmentTasks:
        """Return the environments of one split."""
        return EnvironmentTasks(self, "gymnasium", split, episode, seed)
