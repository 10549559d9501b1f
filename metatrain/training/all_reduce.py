"""Compute shards on ranks that all take the same steps: each its share, and all of them add up all sums.

There is no driver that sends parameters: every rank steps the same optimiser, from the same state, by the same sum.
"""

import os
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from metatrain.training.in_process import InProcess
from metatrain.training.profiling import Usage, as_report
from metatrain.training.ranks import Ranks
from metatrain.training.tree_sum import Block, TreeSum
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

        Each rank receives the sums of all blocks: W · B · P numbers of W ranks, of B blocks each (`divide`; 1 where
        both shards and ranks are a power of two), where a ring that adds on the way takes 2 · P: it adds in an order
        that changes with W.
        """
        self.stepped = True
        blocks = divide(len(shards), self.ranks.size)

        def compute() -> list[tuple[Any, ...]]:
            return [tuple(self._local.sum(request, params, _members(block, shards))) for block in own]

        own = blocks[self.ranks.rank]
        total = TreeSum(len(shards))
        for of_rank, sums in zip(blocks, self.ranks.gather(compute), strict=True):
            for block, found in zip(of_rank, sums, strict=True):
                total.add(block.number, MetaGradient(*found), block.level)
        self._tasks_done += sum(len(shard.indices) for block in own for shard in _members(block, shards))
        return total.total()  # type: ignore[no-any-return]

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


def _members(block: Block, shards: Sequence[Shard]) -> list[Shard]:
    return [shards[leaf] for leaf in block.leaves(len(shards))]
