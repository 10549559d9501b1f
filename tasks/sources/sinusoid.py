"""Serve sinusoids as a task source: regression of y = A sin(x − φ) (Finn et al. 2017, §5.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tasks.random import Reals, stream, uniforms
from tasks.text import part_of
from tasks.types import Episode, EpisodeShape, Examples, Progress, Split, TaskSpec

Range = tuple[float, float]


@dataclass(frozen=True)
class Sinusoid:
    """A source without any files: amplitude A, phase φ and the points x are uniform in their ranges."""

    amplitude: Range = (0.1, 5.0)
    phase: Range = (0.0, math.pi)
    x: Range = (-5.0, 5.0)

    def __post_init__(self) -> None:
        for name, (low, high) in vars(self).items():
            if not -math.inf < low < high < math.inf:
                raise ValueError(
                    f"{name}: {low:g} to {high:g} is not a range: set two finite numbers, the smaller first"
                )

    def prepare(self, progress: Progress) -> str:
        """Return a description; there is nothing to prepare."""
        amplitudes, phases = self._format_range("amplitude"), self._format_range("phase")
        return f"sinusoid: amplitudes of {amplitudes}, phases of {phases}, endlessly many"

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> "Sinusoids":
        """Return the sinusoids of one split; splits differ in their draws only."""
        return Sinusoids(self, split, episode, seed)

    def _format_range(self, name: str) -> str:
        low, high = getattr(self, name)
        return f"{low:.3g} to {high:.3g}"


@dataclass(frozen=True)
class Sinusoids:
    """One split's tasks, addressed by (seed, split, index). A task's support set does not depend on its queries."""

    source: Sinusoid
    split: Split
    episode: EpisodeShape
    seed: int

    def __post_init__(self) -> None:
        if self.episode.ways is not None:
            field = f"{part_of(self.split)}.ways"
            raise ValueError(f"{field}: a sinusoid has no classes to tell apart: set {field}=null")

    @property
    def spec(self) -> TaskSpec:
        """Return the spec of a regression from one number to another."""
        return TaskSpec("regression", None, (1,), (1,))

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return the tasks at `indices`, stacked: support.x and .y [B, K, 1], query.x and .y [B, Q, 1], float32."""
        shots, queries = self.episode.shots, self.episode.queries
        numbers = uniforms(self.seed, stream("sinusoid", self.split), indices, 2 + shots + queries)
        amplitude, phase = _scale(numbers[:, :1], self.source.amplitude), _scale(numbers[:, 1:2], self.source.phase)
        x = _scale(numbers[:, 2:], self.source.x)
        y = amplitude * torch.sin(x - phase)
        parts = slice(None, shots), slice(shots, None)
        return Episode(*(Examples(x[:, part, None].float(), y[:, part, None].float()) for part in parts))


def _scale(uniform: Reals, span: Range) -> torch.Tensor:
    """Map numbers in [0, 1) to a range, in float64."""
    return torch.from_numpy(span[0] + (span[1] - span[0]) * uniform)
