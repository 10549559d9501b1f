"""Serve few-shot tasks as sequences: examples in random order, whose labels are told one step late.

The protocol of memory-augmented networks (Santoro et al. 2016): a learner predicts each example, is told its class, and
is judged by how well it does on the second, third, … example of a class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from tasks.random import Integers, stream, uniforms
from tasks.text import part_of
from tasks.types import Episode, LabelledSequence, Split, TaskDistribution, TaskSpec


@dataclass(frozen=True)
class Sequences:
    """The tasks of another distribution, support and query examples mixed: N·(K + Q) steps, K + Q of each class.

    The order is a task's own, drawn by (seed, split, index).
    """

    tasks: Any
    split: Split
    seed: int

    @property
    def spec(self) -> TaskSpec:
        """Return the spec of these tasks."""
        spec: TaskSpec = self.tasks.spec
        return spec._replace(ordered=True)

    def episodes(self, indices: Sequence[int]) -> LabelledSequence:
        """Return the tasks at `indices`, stacked: x [B, T, *spec.x], y [B, T]."""
        found: Episode = self.tasks.episodes(indices)
        x, y = tree_map(lambda support, query: torch.cat([support, query], 1), *found)
        keys = uniforms(self.seed, stream("sequences", self.split), indices, y.shape[1])
        order = torch.from_numpy(keys.argsort(1, kind="stable"))
        each = torch.arange(len(order))[:, None]
        return LabelledSequence(tree_map(lambda leaf: leaf[each, order], x), y[each, order])

    def task_classes(self, indices: Sequence[int]) -> Integers | None:
        """Return the numbers of the classes of the tasks at `indices` [B, N]; None where the source does not tell."""
        told = getattr(self.tasks, "task_classes", None)
        return None if told is None else told(indices)


def as_sequences(tasks: Any, name: str, split: Split, seed: int) -> TaskDistribution[Any]:
    """Return `tasks` as sequences, if they are not already. ValueError: those of the source `name` cannot be."""
    spec: TaskSpec = tasks.spec
    if spec.ordered:
        ordered: TaskDistribution[Any] = tasks
        return ordered
    if spec.ragged:
        part = part_of(split)
        reason = f"{part}: tasks of many sizes are no sequences of one length, which this algorithm reads"
        raise ValueError(f"{reason}: set numbers for {part}.ways, .shots and .queries")
    if spec.ways is None or spec.support is not None or spec.masked:
        reason = "have no classes" if spec.ways is None else "have support sets of another shape than queries"
        raise ValueError(f"tasks.name: tasks of {name} {reason}, and this algorithm reads sequences: set omniglot")
    return Sequences(tasks, split, seed)
