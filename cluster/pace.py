"""Learn from replies how long shards take, and what workers can sample ahead of the next step."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median

from cluster.work_queue import first_shards
from metatrain.types import Shard

OVERDUE_FACTOR, OVERDUE_EXTRA_S = 3.0, 0.25
"""A reply is overdue after this multiple of the usual time, plus so many seconds."""
_REMEMBERED = 101
_MESSAGE_S = 3e-4
"""What it costs the driver to ask a worker for something."""


@dataclass
class Pace:
    """Seconds that a shard takes, by the latest replies."""

    usual: float = math.inf
    """The median; infinite before the first reply."""
    sampling: float = 0.0
    """The mean of the seconds in which its tasks are sampled."""
    driver: float = 0.0
    """Seconds that a call and its reply occupied the driver in the last step."""
    _latest: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _latest_sampling: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def add(self, seconds: float, sampling: float = 0.0) -> None:
        """Add the time of one shard, and of sampling its tasks."""
        self._latest.append(seconds)
        self._latest_sampling.append(sampling)
        self.usual, self.sampling = median(self._latest), fmean(self._latest_sampling)

    def least_block(self, workers: int, shards: int) -> int:
        """Return the shards that a worker computes while the driver serves all workers once, at most `shards`."""
        if not self.driver or self.usual == math.inf:
            return 1
        return max(1, math.ceil(min(shards, workers * self.driver / self.usual) if self.usual else shards))


class NextStep:
    """The shards of the step after one of `shards`, if it has as many tasks, that follow upon these.

    Only guessed, as no result depends on which tasks were sampled ahead. workers: those of the step.
    """

    def __init__(self, shards: Sequence[Shard], workers: Sequence[int]) -> None:
        self._shards, self._workers = shards, workers

    @cached_property
    def _first(self) -> dict[int, range]:
        return first_shards(len(self._shards), self._workers)

    @cached_property
    def _tasks(self) -> int:
        return sum(len(shard.indices) for shard in self._shards)

    def is_worth_sampling(self, pace: Pace) -> bool:
        """Tell whether a worker samples its first half for longer than the driver takes to ask all of them."""
        workers = len(self._workers)
        return workers > 0 and pace.sampling * len(self._shards) / (2 * workers) > _MESSAGE_S * workers

    def take(self, worker: int) -> list[Shard]:
        """Return, once, the shards that `worker` most likely receives first."""
        return [self._follow(self._shards[number]) for number in self._first.pop(worker, ())]

    def _follow(self, shard: Shard) -> Shard:
        return shard._replace(indices=tuple(index + self._tasks for index in shard.indices))
