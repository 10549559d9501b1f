"""Keep track of the shards of one step: which are left, which are assigned to a worker, which are complete.

Pure bookkeeping, without Ray or a clock: the caller passes worker numbers and times. Work is assigned in *blocks*, runs
of shards that form one node of the summation tree, so that a worker replies with their sum instead of each result.

Guided self-scheduling (Polychronopoulos and Kuck 1987) with work stealing: each worker owns a range of shards and takes
blocks from it that shrink with what is left for all workers, which keeps replies few and the wait for the last one
short; a worker whose range is empty steals half of the longest remaining one. Of L unassigned shards of W workers, a
block has at most L / (3W - 1), rounded up. So the two blocks that a worker holds keep it busy no longer than the others
with all the rest, even if it takes 1.5 times as long for each shard. Where so many replies would keep the driver busier
than the workers, blocks are larger, up to half of what is left of a worker's range.

None of this can change a result, as the tree alone fixes what is added to what.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
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

    largest: most shards in a block. least: shards of a block below which the driver is busier than the workers.
    """

    def __init__(self, shards: int, workers: Sequence[int], largest: int, least: int = 1) -> None:
        self.shards = shards
        self.unassigned = shards
        """Shards that no worker holds, and that are not complete."""
        self._largest, self._least = largest, least
        self._ranges = dict(_split_evenly(shards, workers or [0]))
        self._returned: list[ShardRange] = []
        self._assignments: dict[int, Assignment] = {}
        self._open: dict[int, Assignment] = {}
        self._incomplete_of: dict[int, int] = {}
        """Incomplete shards, by open assignment."""
        self._numbers_of: defaultdict[int, set[int]] = defaultdict(set)
        """Assignments, by worker."""
        self._holders: list[tuple[int, ...]] = [()] * shards
        """Assignments, by shard."""
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
        fair = max(-(-self.unassigned // (3 * len(self._ranges) - 1)), min(self._least, len(available) // 2))
        block = _first_block(available, min(fair, most or fair, self._largest))
        leaves = block.leaves(self.shards)
        available.start = leaves.stop
        self.unassigned -= len(leaves)
        return self._assign(worker, block, now), block

    def take_overdue(self, worker: int, overdue: Set[int], now: float) -> tuple[int, Block] | None:
        """Assign a block a second time, of shards that only the `overdue` assignments hold; the oldest one's first."""
        mine = self._numbers_of[worker]
        for number in sorted(overdue & self._open.keys(), key=lambda number: self._open[number].since):
            leaves = self._open[number].block.leaves(self.shards)
            free = [leaf for leaf in leaves if self._is_held_by(leaf, overdue) and mine.isdisjoint(self._holders[leaf])]
            if free:
                run = _first_run(free)
                block = _first_block(run, min(self._largest, max(1, len(run) // 2)))
                return self._assign(worker, block, now), block
        return None

    def complete(self, number: int) -> bool:
        """Close assignment `number`, which was answered; False if a part of its block is complete already."""
        leaves = self._release(number)
        if not self._incomplete.issuperset(leaves):
            self._put_back(leaves)
            return False
        self._incomplete.difference_update(leaves)
        for other in (other for leaf in leaves for other in self._holders[leaf]):
            self._incomplete_of[other] -= 1
            if not self._incomplete_of[other]:
                del self._open[other], self._incomplete_of[other]
        return True

    def fail(self, number: int) -> int:
        """Close assignment `number`, which was lost; return how many of its shards have to be assigned again."""
        return self._put_back(self._release(number))

    def open_assignments(self) -> Mapping[int, Assignment]:
        """Return, by number, the assignments with an incomplete shard: those that the step waits for."""
        return self._open

    def _assign(self, worker: int, block: Block, now: float) -> int:
        self._last_number += 1
        number, leaves = self._last_number, block.leaves(self.shards)
        for leaf in leaves:
            self._holders[leaf] += (number,)
        self._assignments[number] = self._open[number] = Assignment(block, worker, now)
        self._incomplete_of[number] = len(leaves)
        self._numbers_of[worker].add(number)
        return number

    def _release(self, number: int) -> Sequence[int]:
        one = self._assignments.pop(number)
        self._open.pop(number, None)
        self._incomplete_of.pop(number, None)
        self._numbers_of[one.worker].remove(number)
        leaves = one.block.leaves(self.shards)
        for leaf in leaves:
            self._holders[leaf] = tuple(other for other in self._holders[leaf] if other != number)
        return leaves

    def _is_held_by(self, leaf: int, numbers: Set[int]) -> bool:
        """Tell whether a shard is incomplete, and only assignments among `numbers` hold it."""
        return leaf in self._incomplete and numbers >= set(self._holders[leaf])

    def _put_back(self, leaves: Sequence[int]) -> int:
        """Return those of `leaves` that nobody holds to the queue; how many they are."""
        free = [leaf for leaf in leaves if self._is_held_by(leaf, set())]
        count = len(free)
        self.unassigned += count
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
        if not self.unassigned:
            return None
        longest = max(self._ranges.values(), key=len)
        stolen = ShardRange((longest.start + longest.stop) // 2, longest.stop)
        longest.stop = stolen.start
        self._ranges[worker] = stolen
        return stolen


def _first_block(shards: ShardRange, most: int) -> Block:
    """Return the largest block of at most `most` shards at the start of `shards`."""
    level = min(most, len(shards)).bit_length() - 1
    while shards.start % (1 << level):
        level -= 1
    return Block(level, shards.start >> level)


def first_shards(shards: int, workers: Sequence[int]) -> dict[int, range]:
    """Return, by worker, the shards that each receives first from a new queue: half of its own range."""
    return {worker: range(own.start, own.start + -(-len(own) // 2)) for worker, own in _split_evenly(shards, workers)}


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
