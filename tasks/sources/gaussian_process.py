"""Serve draws of Gaussian processes as a task source: regression whose best possible predictions are known.

Kernels, ranges and sizes are those of the neural-process literature (Bruinsma et al. 2023: x in [−2, 2], length scale
1/4, noise of variance .05; Nguyen & Grover 2022: length U[.1, .6], scale U[.1, 1], noise .02²).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.random import Integers, Reals, normals, stream, uniforms
from tasks.sources.kernels import KERNELS
from tasks.sources.many_sizes import draw_sizes, require_fewest, require_no_ways
from tasks.types import (
    Episode,
    EpisodeShape,
    Examples,
    OracleEpisode,
    PaddedExamples,
    Progress,
    Split,
    TaskSpec,
)

Range = tuple[float, float]
Name = Literal["eq", "matern", "weakly_periodic", "sawtooth", "mixture"]
NAMES: tuple[Name, ...] = ("eq", "matern", "weakly_periodic", "sawtooth", "mixture")
MIXED: tuple[Name, ...] = ("eq", "matern", "weakly_periodic", "sawtooth")
"""The functions among which each task of "mixture" has one."""

FREQUENCY: Range = (2.0, 4.0)
"""Teeth of a sawtooth per unit of x."""
JITTER = 1e-9
"""Added to the diagonal of a correlation matrix, so that rounding leaves it positive definite."""


@dataclass(frozen=True)
class GaussianProcess:
    """A source without any files: y = f(x) + ε, f drawn from a Gaussian process with this kernel, x uniform in a range.

    length and scale: ranges from which each task draws its length scale and the standard deviation of f; two equal
    numbers fix them. noise: the variance of ε. fewest: the smallest support set; each task has between `fewest` and
    `shots` support examples, padded to `shots`; None: all have `shots`. "sawtooth" is (freq·(±x) + offset) mod 1
    without noise, which is no Gaussian process; "mixture" draws one of the other four for each task.
    """

    kernel: Name = "eq"
    length: Range = (0.25, 0.25)
    scale: Range = (1.0, 1.0)
    noise: float = 0.05
    x: Range = (-2.0, 2.0)
    fewest: int | None = None

    def __post_init__(self) -> None:
        if self.kernel not in NAMES:
            raise ValueError(f"kernel: {self.kernel} is not known: set {', '.join(NAMES[:-1])} or {NAMES[-1]}")
        for name in ("length", "scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(
                    f"{name}: {low:g} to {high:g} is not a range: set two numbers above 0, the smaller first"
                )
        low, high = self.x
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"x: {low:g} to {high:g} is not a range: set two finite numbers, the smaller first")
        if not 0 < self.noise < math.inf:
            raise ValueError(f"noise: a variance of {self.noise:g} leaves no density to predict: set it above 0")
        if self.fewest is not None and self.fewest < 0:
            raise ValueError(f"fewest: {self.fewest} is no number of examples: set 0 or more")

    def prepare(self, progress: Progress) -> str:
        """Return a description; there is nothing to prepare."""
        return f"gaussian_process: {self.kernel}, endlessly many functions"

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> "GaussianProcesses":
        """Return the functions of one split; splits differ in their draws only."""
        return GaussianProcesses(self, split, episode, seed)


class _Functions(NamedTuple):
    """The tasks of one call: which function each has, and what it is drawn with, [B] or [B, shots + queries]."""

    kernel: list[Name]
    length: Reals
    scale: Reals
    x: Reals
    y: Reals
    sizes: Integers
    """Support examples of each task."""


@dataclass(frozen=True)
class GaussianProcesses:
    """One split's tasks, addressed by (seed, split, index). A task's support set does not depend on its queries.

    Tasks for validation and testing hold the exact posterior of their queries, if there is one.
    """

    source: GaussianProcess
    split: Split
    episode: EpisodeShape
    seed: int

    def __post_init__(self) -> None:
        require_no_ways(self.split, self.episode, "a function has no classes to tell apart")
        require_fewest(self.split, self.episode, self.source.fewest, "examples")

    @property
    def spec(self) -> TaskSpec:
        """Return the spec of a regression from one number to another."""
        known = self.source.kernel in KERNELS
        return TaskSpec("regression", None, (1,), (1,), masked=self.source.fewest is not None, posterior=known)

    def episodes(self, indices: Sequence[int]) -> Episode | OracleEpisode:
        """Return the tasks at `indices`, stacked: support.x and .y [B, K, 1], query.x and .y [B, Q, 1], float32.

        Padding of the support set is 0, in x and y.
        """
        drawn, shots = self._draw(indices), self.episode.shots
        inside = np.arange(shots) < drawn.sizes[:, None]
        x, y = (_column(np.where(inside, values[:, :shots], 0.0)) for values in (drawn.x, drawn.y))
        mask = torch.from_numpy(inside)
        support: Any = Examples(x, y) if self.source.fewest is None else PaddedExamples(x, y, mask)
        query = Examples(_column(drawn.x[:, shots:]), _column(drawn.y[:, shots:]))
        if self.split == "train" or self.source.kernel not in KERNELS:
            return Episode(support, query)
        return OracleEpisode(support, query, self._posterior(drawn, inside))

    def _draw(self, indices: Sequence[int]) -> _Functions:
        name, number = f"gaussian-process/{self.split}", self.episode.shots + self.episode.queries
        settings = uniforms(self.seed, stream(name, "function"), indices, 6)
        x = _scaled(uniforms(self.seed, stream(name, "x"), indices, number), self.source.x)
        pairs = uniforms(self.seed, stream(name, "y"), indices, 4 * number)
        latent, noise = (normals(pairs[:, at::4], pairs[:, at + 1 :: 4])[0] for at in (0, 2))
        length, scale = _scaled(settings[:, 0], self.source.length), _scaled(settings[:, 1], self.source.scale)
        mixed: list[Name] = [MIXED[int(one * len(MIXED))] for one in settings[:, 2]]
        kernel: list[Name] = mixed if self.source.kernel == "mixture" else [self.source.kernel] * len(x)
        y = np.empty_like(x)
        for i, one in enumerate(kernel):
            if one == "sawtooth":
                y[i] = _sawtooth(x[i], settings[i, 3:])
                continue
            correlation = KERNELS[one](np.abs(x[i, :, None] - x[i]), length[i])
            # Rows of a lower triangle: the support set is drawn before the queries, whatever their number.
            root = np.linalg.cholesky(correlation + JITTER * np.eye(number))
            y[i] = scale[i] * (root * latent[i]).sum(1) + math.sqrt(self.source.noise) * noise[i]
        fewest, shots = self.source.fewest, self.episode.shots
        sizes = draw_sizes(self.seed, stream(name, "size"), indices, fewest, shots)
        return _Functions(kernel, length, scale, x, y, sizes)

    def _posterior(self, drawn: _Functions, inside: NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the queries' targets, noise included: [B, Q, 1], float32."""
        shots = self.episode.shots
        mean, std = (np.empty_like(drawn.x[:, shots:]) for _ in range(2))
        for i, kernel in enumerate(drawn.kernel):
            known = np.flatnonzero(inside[i])
            x, given = drawn.x[i, shots:], drawn.x[i, known]
            variance = np.square(drawn.scale[i])
            prior = variance * KERNELS[kernel](np.abs(given[:, None] - given), drawn.length[i])
            cross = variance * KERNELS[kernel](np.abs(given[:, None] - x), drawn.length[i])
            weights = np.linalg.solve(prior + self.source.noise * np.eye(len(known)), cross)
            mean[i] = (weights * drawn.y[i, known, None]).sum(0)
            left = np.maximum(variance - (weights * cross).sum(0), 0.0)  # rounding may leave less than nothing
            std[i] = np.sqrt(left + self.source.noise)
        return _column(mean), _column(std)


def _sawtooth(x: Reals, draws: Reals) -> Reals:
    """Return (freq·(±x) + offset) mod 1. draws: three numbers in [0, 1)."""
    frequency = _scaled(draws[0], FREQUENCY)
    found: Reals = (frequency * (x if draws[1] < 0.5 else -x) + draws[2]) % 1
    return found


def _scaled(uniform: Reals, span: Range) -> Reals:
    """Map numbers in [0, 1) to a range."""
    found: Reals = span[0] + (span[1] - span[0]) * uniform
    return found


def _column(values: Reals) -> torch.Tensor:
    """Return numbers [B, n] as [B, n, 1], float32."""
    return torch.from_numpy(values)[..., None].float()
