"""Serve environments by index: every family of them that a source draws parameters of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tasks.environments.protocol import Discrete, Environment, EnvironmentTask, Parameters
from tasks.environments.shape import EnvironmentShape
from tasks.random import Reals, random_words, stream, uniforms
from tasks.types import Split, TaskSpec


class DrawsEnvironments(Protocol):
    """A source of tasks that are environments: a family of them, and how parameters follow from numbers."""

    @property
    def environment(self) -> Environment:
        """Return the family."""

    @property
    def draws(self) -> int:
        """Return how many numbers a task's parameters take."""

    def parameters(self, numbers: Reals) -> Parameters:
        """Return the parameters of tasks, float32, of numbers in [0, 1) [B, draws]."""


@dataclass(frozen=True)
class EnvironmentTasks:
    """One split's environments, addressed by (seed, split, index); splits differ in their draws only."""

    source: DrawsEnvironments
    name: str
    split: Split
    shape: EnvironmentShape
    seed: int

    @property
    def spec(self) -> TaskSpec:
        """Return the spec: x is an observation, y an action, or the logits of one."""
        environment = self.source.environment
        actions = environment.actions
        outputs = actions.choices if isinstance(actions, Discrete) else actions.size
        return TaskSpec(
            "environment",
            None,
            (environment.observation_size,),
            (outputs,),
            environment=environment,
            episodes=self.shape.episodes,
        )

    def episodes(self, indices: Sequence[int]) -> EnvironmentTask:
        """Return the tasks at `indices`, stacked."""
        numbers = uniforms(self.seed, stream(self.name, self.split), indices, self.source.draws)
        words = random_words(self.seed, stream(self.name, self.split, "key"), indices, 2).astype("int64")
        keys = (words[:, 1] >> 2 << 32) | words[:, 0]
        return EnvironmentTask(self.source.parameters(numbers), torch.from_numpy(keys))
