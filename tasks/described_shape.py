"""Define the size of episodes whose classes are described: zero-shot, and few-shot with side information."""

import math
from dataclasses import dataclass

from tasks.environments.shape import EnvironmentShape
from tasks.io.home import PathText
from tasks.ragged_shape import RaggedShape
from tasks.types import EpisodeShape


@dataclass(frozen=True)
class DescribedShape:
    """Size of an episode whose support set describes its classes.

    descriptions: "own" for those that the source has of its classes (attributes, pen strokes), or a file of vectors by
    class, such as word vectors: Parquet, CSV or npz with the names of classes in a column "class". ways, queries: as
    elsewhere. shots: examples of each class beside its description; 0 is zero-shot. noise: standard deviation of the
    normal noise on descriptions, in units of their own standard deviation over training classes.
    seen: how many of the classes of a task are classes of the training split (generalised zero-shot); their examples
    are of the share `held_out` of each training class that training leaves out, which is set in tasks.train.
    """

    descriptions: PathText = "own"
    ways: int = 5
    shots: int = 0
    queries: int = 15
    noise: float = 0.0
    seen: int = 0
    held_out: float = 0.0

    def __post_init__(self) -> None:
        if self.ways < 2:
            raise ValueError(f"ways: {self.ways}-way classification has nothing to tell apart: set ways to 2 or more")
        if self.shots < 0:
            raise ValueError(f"shots: {self.shots} is no number of examples: set shots to 0 or more")
        if self.queries < 1:
            raise ValueError(f"queries: {self.queries} leaves nothing to evaluate on: set queries to 1 or more")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise: {self.noise} is no standard deviation: set noise to 0 or more")
        if not 0 <= self.seen < self.ways:
            raise ValueError(f"seen: {self.seen} of {self.ways} ways leave no unseen class: set seen below ways")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out: {self.held_out} is no share of examples: set it to 0 or more, below 1")

    @property
    def most_examples(self) -> tuple[int, int]:
        """Return the numbers of support and query examples of a task; a description is one."""
        return self.ways * max(self.shots, 1), self.ways * self.queries


TaskShape = EpisodeShape | RaggedShape | DescribedShape | EnvironmentShape
"""The size of tasks, as `tasks.train` and `tasks.test` have it."""
