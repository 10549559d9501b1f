"""Label examples by the classes of a whole split, for methods that learn to tell all of them apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tasks.ragged import TaskBatch
from tasks.random import Integers
from tasks.text import count_of
from tasks.types import Episode, Examples, TaskSpec

_MOST_CLASSES = 100_000
"""A classifier has a row of weights for each class."""


@dataclass(frozen=True)
class ClassLabelled:
    """The tasks of another distribution, labelled by the numbers of their classes within the split: 0 to C − 1.

    tasks: a distribution of classification tasks that says `num_classes` C and `task_classes(indices)` [B, N].
    """

    tasks: Any

    @property
    def spec(self) -> TaskSpec:
        """Return the spec of a classification among all C classes."""
        spec: TaskSpec = self.tasks.spec
        return spec._replace(ways=self.tasks.num_classes)

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return the tasks at `indices`; support.y [B, N·K] and query.y number classes of the split."""
        return self._label(self.tasks.episodes(indices), indices)

    def batches(self, indices: Sequence[int]) -> list[TaskBatch]:
        """Return the tasks at `indices`, of many sizes, in batches of one size."""
        return [
            TaskBatch(self._label(tasks, [indices[place] for place in places]), places, self.spec)
            for tasks, places, _ in self.tasks.batches(indices)
        ]

    def _label(self, tasks: Episode, indices: Sequence[int]) -> Episode:
        classes = torch.from_numpy(self.task_classes(indices))
        return Episode(*(Examples(part.x, classes.gather(1, part.y)) for part in tasks))

    def task_classes(self, indices: Sequence[int]) -> Integers:
        """Return the numbers of the classes of the tasks at `indices`: [B, N]."""
        found: Integers = self.tasks.task_classes(indices)
        return found


def label_classes(tasks: Any, name: str) -> ClassLabelled:
    """Return `tasks` labelled by the classes of the split. ValueError: the source `name` does not list them."""
    classes = getattr(tasks, "num_classes", None)
    if not isinstance(classes, int) or not callable(getattr(tasks, "task_classes", None)):
        raise ValueError(
            f"tasks.name: {name} does not list its training classes, which this algorithm tells apart: set another "
            "source, or maml"
        )
    if classes > _MOST_CLASSES:
        raise ValueError(
            f"tasks.name: {name} has {count_of(classes, 'training class', 'training classes')}, too many for this "
            f"algorithm, which tells all of them apart: set tasks.classes to at most {_MOST_CLASSES:,}, or another "
            "source"
        )
    return ClassLabelled(tasks)
