"""Compute shards on ranks that all take the same steps: each its share, and all of them add up all sums.

There is no driver that sends parameters: every rank steps the same optimiser, from the same state, by the same sum.
"""

import os
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from metatrain.training.in_process import InProcess
from metatrain.training.profiling import Usage, as_report
from metatrain.training.ranks import Ranks
from metatrain.training.tree_sum import Block, TreeSum, flatten, unflatten
from metatrain.training.worker import Worker
from metatrain.types import MetaGradient, Params, Scores, Shard, ShardRequest, WorkerEvent


class AllReduce:
    """The executor of one rank: every rank calls the same methods in the same order, and all get the same results."""

    def __init__(self, worker: Worker, ranks: Ranks) -> None:
        self.worker, self.ranks = worker, ranks
        self._local = InProcess(worker)
        self._tasks_done = 0
        self.stepped = False
        """Whether it has summed last, not scored: ranks pause between steps, not amid a validation or test."""

    def map(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> Iterator[Scores]:
        """Score one shard on each rank at a time, and yield the scores of all of them in shard order."""
        self.stepped = False
        params = self.worker.to_device(params)
        for first in range(0, len(shards), self.ranks.size):
            place = first + self.ranks.rank
            mine = shards[place : place + 1]

            def score(mine: Sequence[Shard] = mine) -> list[dict[str, Any]]:
                return [self.worker.score_or_embed(request, params, shard).values for shard in mine]

            for found in self.ranks.gather(score):
                yield from (Scores(values) for values in found)

    def sum(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> MetaGradient:
        """Return the meta-gradient of all shards, of the same bits as in one process for any number of ranks.

        Every rank adds its slice of the P numbers along the tree, and all join their slices: of W ranks each receives
        (B + 1) · P · (W - 1) / W numbers, with B blocks on each (`divide`; 1 where both shards and ranks are a power of
        two). A ring that adds on the way takes 2 · P · (W - 1) / W, in an order that changes with W.
        """
        self.stepped = True
        blocks = divide(len(shards), self.ranks.size)
        own = blocks[self.ranks.rank]
        vectors: list[Tensor] = []

        def compute() -> list[tuple[Any, ...]]:
            found = [self._local.sum(request, params, _members(block, shards)) for block in own]
            vectors.extend(torch.from_numpy(flatten(gradient.grads)) for gradient in found)
            return [(_layout(gradient.grads), gradient.metrics, gradient.num_tasks) for gradient in found]

        gathered = [one for found in self.ranks.gather(compute) for one in found]
        rest = _add(blocks, [one[1:] for one in gathered], len(shards))
        layout = {name: torch.Size(shape) for name, shape in gathered[0][0]}
        summed = self._sum_vectors(blocks, vectors, sum(shape.numel() for shape in layout.values()), len(shards))
        if request.counts:
            self._tasks_done += sum(len(shard.indices) for block in own for shard in _members(block, shards))
        found = unflatten(summed.numpy(), layout)
        return MetaGradient({name: found[name] for name in layout}, *rest)

    def _sum_vectors(
        self, blocks: Sequence[Sequence[Block]], vectors: Sequence[Tensor], length: int, shards: int
    ) -> Tensor:
        """Return the sum of the vectors [length] of all blocks, of which this rank has its own."""
        bounds = [length * rank // self.ranks.size for rank in range(self.ranks.size + 1)]
        widths = [stop - start for start, stop in pairwise(bounds)]
        mine = widths[self.ranks.rank]
        slices = [vector[start:stop] for start, stop in pairwise(bounds) for vector in vectors]
        sent = torch.cat(slices) if slices else torch.empty(0)
        sizes = [width * len(vectors) for width in widths]
        received = self.ranks.swap(sent, sizes, [mine * len(of_rank) for of_rank in blocks])
        count = sum(len(of_rank) for of_rank in blocks)
        total = _add(blocks, list(received.view(count, mine)), shards)
        return self.ranks.swap(total.repeat(self.ranks.size), [mine] * self.ranks.size, widths)

    def compile(self, shards: Sequence[Shard]) -> None:
        self.worker.compile(shards)

    def events(self) -> list[WorkerEvent]:
        return []

    def health(self) -> Mapping[str, float]:
        return {"workers": float(self.ranks.size)}

    def report(self) -> Mapping[str, Any]:
        """Return what all ranks did; only this one's, once the exchange has ended."""
        own: tuple[Any, dict[str, int]] = (tuple(self.worker.meter.usage()), {str(os.getpid()): self._tasks_done})
        found = [own] if self.ranks.ended else self.ranks.gather(lambda: own)
        workers = dict(ChainMap(*(tasks for _, tasks in found)))
        return {"workers": workers, "retries": 0} | as_report([Usage(*usage) for usage, _ in found])

    def close(self) -> None:
        self._local.close()


def divide(shards: int, ranks: int) -> list[list[Block]]:
    """Divide the leaves of the summation tree evenly; return each rank's as few blocks, at most 2 · log2(shards)."""
    bounds = [shards * rank // ranks for rank in range(ranks + 1)]
    return [list(_cover(start, stop, shards)) for start, stop in pairwise(bounds)]


def _cover(start: int, stop: int, total: int) -> Iterator[Block]:
    """Yield the largest blocks that together hold leaves `start` to `stop` - 1; the last may be cut at `total`."""
    while start < stop:
        level = 0
        while start % (2 << level) == 0 and start + (1 << level) < total:
            fits = start + (2 << level) <= stop or stop == total
            if not fits:
                break
            level += 1
        yield Block(level, start >> level)
        start += 1 << level


def _layout(params: Params) -> list[tuple[str, list[int]]]:
    """Return names and shapes as plain values, in their order."""
    return [(name, list(value.shape)) for name, value in params.items()]


def _add(blocks: Sequence[Sequence[Block]], trees: Sequence[Any], shards: int) -> Any:
    """Return the sum of one tree for each block, in order of rank and block."""
    total = TreeSum(shards)
    for block, tree in zip((block for of_rank in blocks for block in of_rank), trees, strict=True):
        total.add(block.number, tree, block.level)
    return total.total()


def _members(block: Block, shards: Sequence[Shard]) -> list[Shard]:
    return [shards[leaf] for leaf in block.leaves(len(shards))]
