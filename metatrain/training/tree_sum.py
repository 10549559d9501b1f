"""Sums whose order never depends on who computes what, and vectors in which parameters travel."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metatrain.types import MetaGradient, Params
from tasks.types import Tree


class Block(NamedTuple):
    """A node of the balanced binary tree: leaves number·2^level to (number + 1)·2^level - 1, or as far as there are."""

    level: int
    number: int

    def leaves(self, total: int) -> range:
        """Their numbers, in a tree of `total` leaves."""
        return range(self.number << self.level, min((self.number + 1) << self.level, total))


class TreeSum:
    """Adds n trees (of tensors or arrays) along the balanced binary tree over their numbers, in any order of arrival.

    Leaves 2i and 2i + 1 are added first, then pairs of pairs; an odd one out moves up alone. So the result has the
    same bits whatever the order of arrival, and any block may be summed elsewhere beforehand: a block's own tree, its
    leaves counted from its first, is that part of the whole one.
    """

    def __init__(self, leaves: int) -> None:
        self._widths = [leaves]
        while self._widths[-1] > 1:
            self._widths.append((self._widths[-1] + 1) // 2)
        self._waiting: dict[Block, Tree] = {}

    def add(self, number: int, tree: Tree, level: int = 0) -> None:
        """Leaf `number`, or with a `level` the block of that number; each leaf once."""
        while level < len(self._widths) - 1:
            sibling = Block(level, number ^ 1)
            if number ^ 1 < self._widths[level]:
                if sibling not in self._waiting:
                    break
                other = self._waiting.pop(sibling)
                left, right = (tree, other) if number % 2 == 0 else (other, tree)
                tree = tree_map(operator.add, left, right)
            level, number = level + 1, number // 2
        self._waiting[Block(level, number)] = tree

    def total(self) -> Tree:
        """The sum, once every leaf has been added."""
        root = Block(len(self._widths) - 1, 0)
        assert list(self._waiting) == [root], "a leaf is missing"
        return self._waiting[root]


def tree_sum(trees: Iterable[Tree], leaves: int) -> Tree:
    """The sum of `leaves` trees in order of number."""
    summed = TreeSum(leaves)
    for number, tree in enumerate(trees):
        summed.add(number, tree)
    return summed.total()


def flatten(params: Params) -> np.ndarray[Any, Any]:
    """One vector of all parameters, in name order: how they are broadcast."""
    return torch.cat([params[name].detach().reshape(-1) for name in sorted(params)]).cpu().numpy()


def unflatten(vector: np.ndarray[Any, Any], layout: Mapping[str, torch.Size]) -> Params:
    """The parameters of a vector, as views of it where it is writable and copies where it is not."""
    flat = torch.from_numpy(vector if vector.flags.writeable else vector.copy())
    names = sorted(layout)
    parts = torch.split(flat, [layout[name].numel() for name in names])
    return {name: part.view(layout[name]) for name, part in zip(names, parts, strict=True)}


def layout_of(params: Params) -> dict[str, torch.Size]:
    """Names and shapes: what both ends must agree on for a vector to mean something."""
    return {name: value.shape for name, value in params.items()}


def to_cpu(tree: Tree) -> Tree:
    """Every tensor on the CPU."""
    return tree_map(lambda leaf: leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf, tree)


def mean_metrics(gradient: MetaGradient) -> dict[str, float]:
    """Sums over tasks, divided once."""
    return {name: float(value) / int(gradient.num_tasks) for name, value in gradient.metrics.items()}
