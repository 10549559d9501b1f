"""Serve random Markov decision processes of a few states as tasks that are environments (Duan et al. 2016, "RL²")."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from tasks.environments.distribution import EnvironmentTasks
from tasks.environments.shape import EnvironmentShape
from tasks.environments.tabular_mdp import Tables, TabularMDP
from tasks.random import Reals, normals
from tasks.sources.many_sizes import require_count
from tasks.types import Progress, Split

_MOST_DRAWS = 100_000
"""Random numbers of one task's tables."""


@dataclass(frozen=True)
class TabularMDPs:
    """A source without any files: p(s' | s, a) ~ Dirichlet(1, …, 1), mean rewards ~ N(1, 1), rewards around them.

    reward_std: the deviation of a reward from its mean.
    """

    states: int = 10
    choices: int = 5
    horizon: int = 10
    reward_std: float = 1.0

    shape = EnvironmentShape

    def __post_init__(self) -> None:
        for name in ("states", "choices", "horizon"):
            require_count(name, getattr(self, name))
        if not 0 <= self.reward_std < math.inf:
            raise ValueError(f"reward_std: {self.reward_std:g} is no standard deviation: set 0 or more")
        if self.draws > _MOST_DRAWS:
            raise ValueError(f"states: {self.states} with {self.choices} choices take too many draws: lower states")

    @property
    def environment(self) -> TabularMDP:
        """Return the environment that all tasks share."""
        return TabularMDP(self.states, self.choices, self.horizon, self.reward_std)

    @property
    def draws(self) -> int:
        """Return the numbers that a task takes."""
        return self.states * self.choices * (self.states + 2)

    def parameters(self, numbers: Reals) -> Tables:
        """Return tables: normalised exponentials have a Dirichlet distribution."""
        pairs = numbers.reshape(len(numbers), self.states, self.choices, self.states + 2)
        exponentials = -np.log1p(-pairs[..., : self.states]) + np.finfo(np.float64).tiny
        transitions = exponentials / exponentials.sum(-1, keepdims=True)
        rewards = 1 + normals(pairs[..., -2], pairs[..., -1])[0]
        return Tables(torch.from_numpy(transitions).float(), torch.from_numpy(rewards).float())

    def prepare(self, progress: Progress) -> str:
        """Return a description; there is nothing to prepare."""
        return f"tabular_mdp: random processes of {self.states} states and {self.choices} choices, endlessly many"

    def distribution(self, split: Split, episode: EnvironmentShape, seed: int) -> EnvironmentTasks:
        """Return the processes of one split."""
        return EnvironmentTasks(self, "tabular_mdp", split, episode, seed)
