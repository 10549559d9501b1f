"""Serve navigation to goals in the plane as tasks that are environments (Finn, Abbeel & Levine 2017, §5.3)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.environments.distribution import EnvironmentTasks
from tasks.environments.navigation_2d import PointNavigation
from tasks.environments.shape import EnvironmentShape
from tasks.random import Reals
from tasks.sources.many_sizes import require_count
from tasks.types import Progress, Split


@dataclass(frozen=True)
class Navigation2D:
    """A source without any files: goals are uniform in [−reach, reach]²; an episode has at most `horizon` steps."""

    reach: float = 0.5
    horizon: int = 100

    shape = EnvironmentShape
    draws = 2

    def __post_init__(self) -> None:
        if not 0 < self.reach < math.inf:
            raise ValueError(f"reach: {self.reach:g} is no distance: set it above 0")
        require_count("horizon", self.horizon)

    @property
    def environment(self) -> PointNavigation:
        """Return the environment that all tasks share."""
        return PointNavigation(self.horizon)

    def parameters(self, numbers: Reals) -> Tensor:
        """Return goals [B, 2] of numbers [B, 2]."""
        return torch.from_numpy(self.reach * (2 * numbers - 1)).float()

    def prepare(self, progress: Progress) -> str:
        """Return a description; there is nothing to prepare."""
        return f"navigation_2d: goals within ±{self.reach:g} in the plane, endlessly many"

    def distribution(self, split: Split, episode: EnvironmentShape, seed: int) -> EnvironmentTasks:
        """Return the environments of one split."""
        return EnvironmentTasks(self, "navigation_2d", split, episode, seed)
