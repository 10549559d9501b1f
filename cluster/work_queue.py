"""Keep track of the shards of one step: which are left, which are assigned to a worker, which are complete.

Pure bookkeeping, without Ray or a clock: the caller passes worker numbers and times. Work is assigned in *blocks*, runs
of shards that form one node of the summation tree, so that a worker replies with their sum instead of each result.

Guided self-scheduling with work stealing: each worker owns a range of shards and takes half of what is left of it at a
time, which keeps replies few and large; a worker whose range is empty steals half of the longest remaining one. None of
this can change a result, as the tree alone fixes what is added to what.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from metatrain.training.tree_sum import Block


class Assignment(NamedTuple):
    """A block in the hands of a worker, since a time in seconds."""

    block: Block
    worker: int
    since: float


@dataclass
class ShardRange:
    """Shards `start` to `stop` - 1, not yet assigned."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class WorkQueue:
    """Distribute `shards` shards, numbered from 0, over `workers`, whose numbers come node by node.

    largest: most shards in a block.
    """

    def __init__(self, shards: int, workers: Sequence[int], largest: int) -> None:
        self.shards = shards
        self._largest = largest
        self._ranges = dict(_split_evenly(shards, workers or [0]))
        self._returned: list[ShardRange] = []
        self._assignments: dict[int, Assignment] = {}
        self._holders = [0] * shards
        self._incomplete = set(range(shards))
        self._last_number = 0

    @property
    def done(self) -> bool:
        """Tell whether every shard is complete."""
        return not self._incomplete

    @property
    def left(self) -> int:
        """Return the number of shards without a result."""
        return len(self._incomplete)

    def take(self, worker: int, now: float, most: int | None = None) -> tuple[int, Block] | None:
        """Assign a block of at most `most` shards to `worker`: (number, block), or None if none is left."""
        available = self._range_for(worker)
        if available is None:
            return None
        block = self._first_half(available, most)
        available.start = block.leaves(self.shards).stop
        return self._assign(worker, block, now), block

    def take_overdue(self, worker: int, overdue: Set[int], now: float) -> tuple[int, Block] | None:
        """Assign a block a second time, of shards that only the `overdue` assignments hold; the oldest one's first."""
        late = [self._assignments[number] for number in overdue]
        late_holders = Counter(leaf for one in late for leaf in one.block.leaves(self.shards))
        mine = [one.block for one in self._assignments.values() if one.worker == worker]
        own = {leaf for block in mine for leaf in block.leaves(self.shards)}
        for one in sorted(late, key=lambda one: one.since):
            leaves = one.block.leaves(self.shards)
            free = [leaf for leaf in leaves if self._is_held_by(leaf, late_holders[leaf]) and leaf not in own]
            if free:
                block = self._first_half(_first_run(free))
                return self._assign(worker, block, now), block
        return None

    def complete(self, number: int) -> bool:
        """Close assignment `number`, which was answered; False if a part of its block is complete already."""
        leaves = self._release(number)
        if not self._incomplete.issuperset(leaves):
            self._put_back(leaves)
            return False
        self._incomplete.difference_update(leaves)
        return True

    def fail(self, number: int) -> int:
        """Close assignment `number`, which was lost; return how many of its shards have to be assigned again."""
        return self._put_back(self._release(number))

    def open_assignments(self) -> Iterator[tuple[int, Assignment]]:
        """Yield, by number, the assignments with an incomplete shard: those that the step waits for."""
        for number, one in self._assignments.items():
            if not self._incomplete.isdisjoint(one.block.leaves(self.shards)):
                yield number, one

    def _assign(self, worker: int, block: Block, now: float) -> int:
        for leaf in block.leaves(self.shards):
            self._holders[leaf] += 1
        self._last_number += 1
        self._assignments[self._last_number] = Assignment(block, worker, now)
        return self._last_number

    def _release(self, number: int) -> Sequence[int]:
        leaves = self._assignments.pop(number).block.leaves(self.shards)
        for leaf in leaves:
            self._holders[leaf] -= 1
        return leaves

    def _is_held_by(self, leaf: int, holders: int) -> bool:
        """Tell whether an incomplete shard has exactly so many holders."""
        return leaf in self._incomplete and self._holders[leaf] == holders

    def _put_back(self, leaves: Sequence[int]) -> int:
        """Return those of `leaves` that nobody holds to the queue; how many they are."""
        free = [leaf for leaf in leaves if self._is_held_by(leaf, 0)]
        count = len(free)
        while free:
            run = _first_run(free)
            self._returned.append(run)
            free = free[len(run) :]
        return count

    def _range_for(self, worker: int) -> ShardRange | None:
        """Return the range to take from: returned shards, the worker's own range, half of the longest other one."""
        while self._returned:
            if self._returned[0]:
                return self._returned[0]
            self._returned.pop(0)
        if own := self._ranges.get(worker):
            return own
        longest = max(self._ranges.values(), key=len, default=None)
        if not longest:
            return None
        stolen = ShardRange((longest.start + longest.stop) // 2, longest.stop)
        longest.stop = stolen.start
        self._ranges[worker] = stolen
        return stolen

    def _first_half(self, shards: ShardRange, most: int | None = None) -> Block:
        """Return the largest block at the start of `shards` that is at most half of them, and at most `most`."""
        limit = min(self._largest, most or self._largest, max(1, len(shards) // 2))
        level = limit.bit_length() - 1
        while shards.start % (1 << level):
            level -= 1
        return Block(level, shards.start >> level)


def _split_evenly(shards: int, workers: Sequence[int]) -> Iterator[tuple[int, ShardRange]]:
    """Yield a range for each of `workers`, aligned to where large blocks start."""
    unit = 1 << max(0, (shards // (4 * len(workers))).bit_length() - 1)
    bounds = [round(shards * i / len(workers) / unit) * unit for i in range(len(workers))] + [shards]
    for worker, start, stop in zip(workers, bounds, bounds[1:], strict=False):
        yield worker, ShardRange(start, stop)


def _first_run(leaves: Sequence[int]) -> ShardRange:
    """Return the run of consecutive numbers at the start of `leaves`."""
    length = next((i for i, leaf in enumerate(leaves) if leaf != leaves[0] + i), len(leaves))
    return ShardRange(leaves[0], leaves[0] + length)
