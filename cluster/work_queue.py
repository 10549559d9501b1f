"""The books of one step: which shards are still to be done, who has which in flight, which have been counted.

Pure bookkeeping, without Ray or clock: whoever asks says who they are and what time it is. Work is handed out in
*blocks*, runs of shards that add up to one node of the tree, so that a worker can send their sum in place of each.

Every worker has a stretch of the tree of its own, and takes half of what is left of it, then half of that, so that what
it sends adds up to few vectors and what it has not begun can be taken over: who has done their own stretch takes
half of the longest one left. Nothing of this can change a result: the tree alone says what is added to what.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from metatrain.training.tree_sum import Block

Worker = int
"""A seat, by its number."""


class Call(NamedTuple):
    """A block in somebody's hands, since a time in seconds."""

    block: Block
    worker: Worker
    since: float


@dataclass
class ShardRange:
    """Shards `start` to `stop` - 1, which nobody has begun."""

    start: int
    stop: int


class WorkQueue:
    """The books of `shards` shards, numbered from 0, shared out between `workers`, those of a node in a row.

    largest: of how many shards a block may be, at most.
    """

    def __init__(self, shards: int, workers: Sequence[Worker], largest: int) -> None:
        self.shards = shards
        self._largest = largest
        self._stretches = dict(_shares(shards, workers or [0]))
        self._orphaned: list[ShardRange] = []
        self._calls: dict[int, Call] = {}
        self._in_hands = [0] * shards
        self._counted = [False] * shards
        self._left = shards
        self._number = 0

    @property
    def done(self) -> bool:
        """Whether every shard has been counted."""
        return self._left == 0

    def take(self, worker: Worker, now: float, most: int | None = None) -> tuple[int, Block] | None:
        """A call's number and a block that nobody has begun, for `worker`; None where there is none left.

        most: of how many shards, if of fewer than others.
        """
        stretch = self._stretch_for(worker)
        if stretch is None:
            return None
        largest = min(self._largest, most or self._largest)
        block = _first_block(stretch, min(largest, max(1, (stretch.stop - stretch.start) // 2)))
        stretch.start = block.leaves(self.shards).stop
        return self._begin(worker, block, now), block

    def take_over(self, worker: Worker, overdue: Set[int], now: float) -> tuple[int, Block] | None:
        """A block to be done once more, of shards that `overdue` calls alone have, the oldest call's first."""
        late = [self._calls[number] for number in overdue]
        hands = Counter(leaf for call in late for leaf in call.block.leaves(self.shards))
        mine = [call.block for call in self._calls.values() if call.worker == worker]
        own = {leaf for block in mine for leaf in block.leaves(self.shards)}
        for call in sorted(late, key=lambda call: call.since):
            leaves = call.block.leaves(self.shards)
            alone = [leaf for leaf in leaves if self._is_open(leaf, hands[leaf]) and leaf not in own]
            if alone:
                run = _first_run(alone)
                block = _first_block(run, min(self._largest, max(1, (run.stop - run.start) // 2)))
                return self._begin(worker, block, now), block
        return None

    def count(self, number: int) -> bool:
        """The call was answered: whether its block is to be added. It is not where a part of it has been already."""
        call = self._end(number)
        leaves = call.block.leaves(self.shards)
        if any(self._counted[leaf] for leaf in leaves):
            self._give_back(leaves)
            return False
        for leaf in leaves:
            self._counted[leaf] = True
        self._left -= len(leaves)
        return True

    def lose(self, number: int) -> int:
        """The call came to nothing; how many of its shards are to be done again."""
        return self._give_back(self._end(number).block.leaves(self.shards))

    def uncount(self, block: Block) -> None:
        """What had been counted was lost before it could be added, and is to be done again."""
        leaves = block.leaves(self.shards)
        for leaf in leaves:
            assert self._counted[leaf], "only what was counted can be lost so"
            self._counted[leaf] = False
        self._left += len(leaves)
        self._give_back(leaves)

    def waiting(self) -> Iterator[tuple[int, Call]]:
        """The calls that hold up the step, by number: those with a shard that has not been counted."""
        for number, call in self._calls.items():
            if not all(self._counted[leaf] for leaf in call.block.leaves(self.shards)):
                yield number, call

    def _begin(self, worker: Worker, block: Block, now: float) -> int:
        for leaf in block.leaves(self.shards):
            self._in_hands[leaf] += 1
        self._number += 1
        self._calls[self._number] = Call(block, worker, now)
        return self._number

    def _end(self, number: int) -> Call:
        call = self._calls.pop(number)
        for leaf in call.block.leaves(self.shards):
            self._in_hands[leaf] -= 1
        return call

    def _is_open(self, leaf: int, hands: int) -> bool:
        return not self._counted[leaf] and self._in_hands[leaf] == hands

    def _give_back(self, leaves: Sequence[int]) -> int:
        """What of `leaves` nobody has in hands goes to whoever asks next."""
        idle = [leaf for leaf in leaves if self._is_open(leaf, hands=0)]
        given = len(idle)
        while idle:
            run = _first_run(idle)
            self._orphaned.append(run)
            idle = idle[run.stop - run.start :]
        return given

    def _stretch_for(self, worker: Worker) -> ShardRange | None:
        """What is left over of lost calls first, then the worker's own stretch, then half of the longest other one."""
        while self._orphaned:
            if self._orphaned[0].start < self._orphaned[0].stop:
                return self._orphaned[0]
            self._orphaned.pop(0)
        own = self._stretches.get(worker)
        if own is not None and own.start < own.stop:
            return own
        longest = max(self._stretches.values(), key=lambda s: s.stop - s.start, default=None)
        if longest is None or longest.start >= longest.stop:
            return None
        taken = ShardRange((longest.start + longest.stop) // 2, longest.stop)
        longest.stop = taken.start
        self._stretches[worker] = taken
        return taken


def _shares(shards: int, workers: Sequence[Worker]) -> Iterator[tuple[Worker, ShardRange]]:
    """A stretch for each of `workers`, beginning where large blocks do."""
    unit = 1 << max(0, (shards // (4 * len(workers))).bit_length() - 1)
    bounds = [round(shards * i / len(workers) / unit) * unit for i in range(len(workers))] + [shards]
    for worker, start, stop in zip(workers, bounds, bounds[1:], strict=False):
        yield worker, ShardRange(start, stop)


def _first_block(stretch: ShardRange, most: int) -> Block:
    """The largest block of at most `most` shards with which `stretch` begins."""
    level = most.bit_length() - 1
    while stretch.start % (1 << level):
        level -= 1
    return Block(level, stretch.start >> level)


def _first_run(leaves: Sequence[int]) -> ShardRange:
    """The run of consecutive numbers with which `leaves` begin."""
    length = next((i for i, leaf in enumerate(leaves) if leaf != leaves[0] + i), len(leaves))
    return ShardRange(leaves[0], leaves[0] + length)
