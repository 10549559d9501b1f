"""Serve Bernoulli bandits to act in as tasks that are environments (Duan et al. 2016, "RL²", §3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.environments.bandit_arms import BanditArms
from tasks.environments.distribution import EnvironmentTasks
from tasks.environments.shape import EnvironmentShape
from tasks.random import Reals
from tasks.sources.many_sizes import require_count
from tasks.types import Progress, Split


@dataclass(frozen=True)
class BanditActions:
    """A source without any files: each arm pays with a probability uniform in [0, 1); an episode is `horizon` pulls."""

    arms: int = 5
    horizon: int = 10

    shape = EnvironmentShape

    def __post_init__(self) -> None:
        require_count("arms", self.arms)
        require_count("horizon", self.horizon)

    @property
    def environment(self) -> BanditArms:
        """Return the environment that all tasks share."""
        return BanditArms(self.arms, self.horizon)

    @property
    def draws(self) -> int:
        """Return the numbers that a task takes."""
        return self.arms

    def parameters(self, numbers: Reals) -> Tensor:
        """Return the probabilities [B, arms] themselves."""
        return torch.from_numpy(numbers).float()

    def prepare(self, progress: Progress) -> str:
        """Return a description; there is nothing to prepare."""
        return f"bandit_arms: {self.arms} arms to pull, that pay with any probability, endlessly many"

    def distribution(self, split: Split, episode: EnvironmentShape, seed: int) -> EnvironmentTasks:
        """Return the bandits of one split."""
        return EnvironmentTasks(self, "bandit_arms", split, episode, seed)
