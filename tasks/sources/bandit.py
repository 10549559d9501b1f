"""Serve pulls of Bernoulli bandits as sequences, with what the exact posterior predicts (Ortega et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tasks.random import Integers, stream, uniforms
from tasks.sources.many_sizes import require_no_ways
from tasks.types import EpisodeShape, LabelledSequence, OracleSequence, Progress, Split, TaskSpec

_MOST = 1000
"""Arms, and pulls that a prior counts for."""
_MOST_DRAWS = 10_000
"""Random numbers of one task's arms."""


@dataclass(frozen=True)
class Bandit:
    """A source without any files: which arm was pulled at each step, and whether it paid.

    Each arm of a task pays with a probability p ~ Beta(successes, failures) of its own, and arms are pulled uniformly
    at random. A learner that has seen an arm pay w of n times can predict no better than by its posterior mean,
    (successes + w) / (successes + failures + n).
    """

    arms: int = 5
    successes: int = 1
    failures: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1 <= value <= _MOST:
                raise ValueError(f"{name}: {value} is none of 1 to {_MOST}: set one of these")
        if self.arms * (self.successes + self.failures) > _MOST_DRAWS:
            raise ValueError(f"arms: {self.arms} with such a prior take too many draws: lower successes and failures")

    def prepare(self, progress: Progress) -> str:
        """Return a description; there is nothing to prepare."""
        prior = f"Beta({self.successes}, {self.failures})"
        return f"bandit: {self.arms} arms that pay with probabilities of {prior}, endlessly many"

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> "Bandits":
        """Return the bandits of one split; splits differ in their draws only."""
        return Bandits(self, split, episode, seed)


@dataclass(frozen=True)
class Bandits:
    """One split's sequences of shots + queries pulls, addressed by (seed, split, index).

    Tasks for validation and testing hold the posterior predictive probabilities.
    """

    source: Bandit
    split: Split
    episode: EpisodeShape
    seed: int

    def __post_init__(self) -> None:
        require_no_ways(self.split, self.episode, "a pull pays or does not, whatever the task")

    @property
    def spec(self) -> TaskSpec:
        """Return the spec of sequences of two classes, 1 for a pull that paid; x is the arm, one-hot."""
        arms = (self.source.arms,)
        return TaskSpec("classification", 2, arms, (), ordered=True, by_step=True, posterior=True)

    def episodes(self, indices: Sequence[int]) -> LabelledSequence | OracleSequence:
        """Return the tasks at `indices`, stacked: x [B, T, arms] float32, y [B, T]."""
        arms, paid = self._draw(indices)
        x = torch.from_numpy(np.eye(self.source.arms, dtype=np.float32)[arms])
        y = torch.from_numpy(paid.astype(np.int64))
        if self.split == "train":
            return LabelledSequence(x, y)
        return OracleSequence(x, y, self._posterior(arms, paid))

    def _draw(self, indices: Sequence[int]) -> tuple[Integers, Integers]:
        """Return the arms that are pulled and whether they pay [B, T]."""
        source, steps = self.source, self.episode.shots + self.episode.queries
        name = f"bandit/{self.split}"
        # The k-th smallest of k + m − 1 uniform numbers has the distribution Beta(k, m).
        count = source.successes + source.failures - 1
        ordered = uniforms(self.seed, stream(name, "arms"), indices, source.arms * count)
        ordered = np.sort(ordered.reshape(len(ordered), source.arms, count))
        p = ordered[:, :, source.successes - 1]
        pulls = uniforms(self.seed, stream(name, "pulls"), indices, 2 * steps)
        arms = (pulls[:, 0::2] * source.arms).astype(np.int64)
        return arms, (pulls[:, 1::2] < np.take_along_axis(p, arms, 1)).astype(np.int64)

    def _posterior(self, arms: Integers, paid: Integers) -> torch.Tensor:
        """Return log-probabilities of each outcome given the steps before it [B, T, 2], float32."""
        pulled = np.eye(self.source.arms)[arms]
        before = pulled.cumsum(1) - pulled
        wins = (pulled * paid[..., None]).cumsum(1) - pulled * paid[..., None]
        n, w = (np.take_along_axis(counts, arms[..., None], 2)[..., 0] for counts in (before, wins))
        successes, failures = self.source.successes, self.source.failures
        p = (successes + w) / (successes + failures + n)
        return torch.from_numpy(np.log(np.stack([1 - p, p], -1))).float()
