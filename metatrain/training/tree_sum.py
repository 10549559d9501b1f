"""Add trees of tensors in an order that does not depend on the workers; flatten parameters to vectors and back."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metatrain.types import MetaGradient, Params
from tasks.types import Tree

_ALIGNMENT = 64
"""Bytes: of the memory that torch allocates on a CPU."""


class Block(NamedTuple):
    """A node of the balanced binary tree: leaves number·2^level to (number + 1)·2^level - 1, cut at the last leaf."""

    level: int
    number: int

    def leaves(self, total: int) -> range:
        """Return the numbers of its leaves, in a tree of `total` leaves."""
        return range(self.number << self.level, min((self.number + 1) << self.level, total))


class TreeSum:
    """Add n trees (of tensors or arrays) along the balanced binary tree over their numbers, in any order of arrival.

    Leaves 2i and 2i + 1 are added first, then pairs of pairs; an odd one moves up alone. So the result has the same
    bits whatever the order of arrival, and a block may be summed on a worker first: a block's own tree, with its leaves
    counted from its first, is a part of the whole tree.
    """

    def __init__(self, leaves: int) -> None:
        self._widths = [leaves]
        while self._widths[-1] > 1:
            self._widths.append((self._widths[-1] + 1) // 2)
        self._waiting: dict[Block, Tree] = {}

    def add(self, number: int, tree: Tree, level: int = 0) -> None:
        """Add leaf `number`, or with a `level` the block of that number; each leaf once."""
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
        """Return the sum, once every leaf has been added."""
        root = Block(len(self._widths) - 1, 0)
        assert list(self._waiting) == [root], "a leaf is missing"
        return self._waiting[root]


def tree_sum(trees: Iterable[Tree], leaves: int) -> Tree:
    """Return the sum of `leaves` trees, given in order of number."""
    summed = TreeSum(leaves)
    for number, tree in enumerate(trees):
        summed.add(number, tree)
    return summed.total()


def flatten(params: Params) -> np.ndarray[Any, Any]:
    """Concatenate all parameters, in name order, into the vector that is broadcast."""
    if not params:
        return np.empty(0, dtype=np.float32)
    return torch.cat([params[name].detach().reshape(-1) for name in sorted(params)]).cpu().numpy()


def unflatten(vector: np.ndarray[Any, Any], layout: Mapping[str, torch.Size]) -> Params:
    """Return copies of the parameters of a vector, each aligned in memory as torch does.

    Libraries of linear algebra round some products otherwise where their inputs are aligned otherwise, as views are.
    """
    names = sorted(layout)
    if not names:
        return {}
    parts = np.split(vector, np.cumsum([layout[name].numel() for name in names])[:-1])
    return {name: torch.tensor(part).view(layout[name]) for name, part in zip(names, parts, strict=True)}


def in_name_order(params: Params) -> Params:
    """Return the parameters in name order, as `unflatten` does: sums over them are rounded in their order."""
    return dict(sorted(params.items()))


def aligned(tree: Tree) -> Tree:
    """Return `tree` with every tensor aligned in memory as torch does, which arrays of numpy need not be."""
    return tree_map(lambda leaf: leaf.clone() if leaf.data_ptr() % _ALIGNMENT else leaf, tree)


def layout_of_call(layout: Mapping[str, torch.Size], sent: Sequence[str]) -> dict[str, torch.Size]:
    """Return the layout of all parameters of a call: the run's own, and as many under each prefix that is `sent`."""
    return {prefix + name: shape for prefix in ("", *sent) for name, shape in layout.items()}


def layout_of(params: Params) -> dict[str, torch.Size]:
    """Return the names and shapes by which `unflatten` reads a vector."""
    return {name: value.shape for name, value in params.items()}


def to_cpu(tree: Tree) -> Tree:
    """Return `tree` with every tensor detached and on the CPU."""
    return tree_map(lambda leaf: leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf, tree)


def mean_metrics(gradient: MetaGradient) -> dict[str, float]:
    """Return the means of the metrics over tasks: the sums, divided once."""
    return gradient.means()[1]
