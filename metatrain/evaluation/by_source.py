"""Results by the source of tasks, and the average rank of learners over sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metatrain.evaluation.intervals import estimate
from metatrain.metrics import Metric


@dataclass(frozen=True)
class SourceEstimate:
    """A score over the tasks of one source, half the width of its 95 % interval, and their number."""

    value: float
    ci95: float
    tasks: int


def estimate_by_source(metric: Metric, values: Tensor, sources: Sequence[str]) -> dict[str, SourceEstimate]:
    """Return the score of each source, in order of their first tasks. values: of each task [tasks]."""
    found = {}
    for name in dict.fromkeys(sources):
        of = values[torch.tensor([one == name for one in sources])]
        value, ci95 = estimate(metric, of)
        found[name] = SourceEstimate(float(value), float(ci95), len(of))
    return found


def average_ranks(scores: Sequence[Mapping[str, float]], sign: int) -> list[float]:
    """Return the mean over sources of each learner's rank: 1 for the best; equal scores share the mean of theirs.

    scores: of each learner by source, the same sources. sign: 1 where higher is better, else -1.
    """
    if not scores:
        return []
    table = sign * np.array([[one[name] for name in scores[0]] for one in scores])  # [learners, sources]
    better = (table[None] > table[:, None]).sum(1)
    equal = (table[None] == table[:, None]).sum(1)
    ranks: list[float] = (1 + better + (equal - 1) / 2).mean(1).tolist()
    return ranks
