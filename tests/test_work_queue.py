"""The work queue: whatever happens to calls, every shard counts once, and the sum keeps its bits."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.work_queue import WorkQueue, first_shards
from metatrain.training.tree_sum import Block, TreeSum, tree_sum


@dataclass
class History:
    """A work queue with what its user knows: the open assignments and the completed blocks."""

    shards: int
    workers: int
    largest: int
    now: float = 0.0
    hands: dict[int, tuple[int, Block]] = field(default_factory=dict)
    counted: list[Block] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = WorkQueue(self.shards, range(self.workers), self.largest)

    def leaves(self, *blocks: Block) -> list[int]:
        return [leaf for block in blocks for leaf in block.leaves(self.shards)]

    def take(self, worker: int) -> bool:
        self.now += 1
        return self._given(worker, self.queue.take(worker, self.now))

    def take_over(self, worker: int, overdue: set[int]) -> bool:
        self.now += 1
        own = self.leaves(*(block for who, block in self.hands.values() if who == worker))
        given = self.queue.take_overdue(worker, overdue, self.now)
        if given is not None:
            again = set(self.leaves(given[1]))
            assert not again & set(own), "no worker receives a shard that it holds"
            assert again <= set(self.leaves(*(self.hands[number][1] for number in overdue))), "only what is overdue"
        return self._given(worker, given)

    def count(self, number: int) -> None:
        _, block = self.hands.pop(number)
        if self.queue.complete(number):
            self.counted.append(block)

    def lose(self, number: int) -> None:
        del self.hands[number]
        self.queue.fail(number)

    def _given(self, worker: int, given: tuple[int, Block] | None) -> bool:
        if given is None:
            return False
        number, block = given
        assert number not in self.hands
        assert 1 <= len(block.leaves(self.shards)) <= self.largest
        assert block.leaves(self.shards).stop == (block.number + 1) << block.level, "a whole node of the tree"
        assert not set(self.leaves(block)) & set(self.leaves(*self.counted)), "nothing counted is handed out"
        self.hands[number] = worker, block
        return True


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw up to 80 events in any order."""
    history = History(draw(st.integers(1, 70)), draw(st.integers(1, 6)), draw(st.integers(1, 80)))
    kinds = st.sampled_from(["take", "take", "count", "lose", "take_over"])
    for kind in draw(st.lists(kinds, max_size=80)):
        worker = draw(st.integers(0, history.workers))  # the last one came later
        if kind == "take":
            history.take(worker)
        elif kind == "take_over":
            waiting = list(history.queue.open_assignments())
            history.take_over(worker, draw(st.sets(st.sampled_from(waiting))) if waiting else set())
        elif kind in ("count", "lose") and history.hands:
            getattr(history, kind)(draw(st.sampled_from(sorted(history.hands))))
    return history


def finish(history: History, last_calls_are_lost: bool) -> None:
    for number in list(history.hands):
        (history.lose if last_calls_are_lost else history.count)(number)
    while not history.queue.done:
        assert history.take(history.workers), "what is left can be taken"
        history.count(next(iter(history.hands)))


@given(histories(), st.booleans())
def test_after_any_history_every_shard_is_counted_once(history, last_calls_are_lost):
    finish(history, last_calls_are_lost)
    assert sorted(history.leaves(*history.counted)) == list(range(history.shards))
    assert history.queue.take(0, 0.0) is None


@given(histories(), st.booleans())
def test_the_blocks_that_count_add_up_to_the_same_bits(history, last_calls_are_lost):
    finish(history, last_calls_are_lost)
    # Magnitudes far apart, so that any other order of addition rounds differently.
    numbers = np.random.default_rng(0).standard_normal((history.shards, 4), dtype=np.float32)
    trees = list(numbers * np.float32(10) ** (np.arange(history.shards) % 7 - 3)[:, None].astype(np.float32))
    summed = TreeSum(history.shards)
    for block in history.counted:
        members = [trees[leaf] for leaf in block.leaves(history.shards)]
        summed.add(block.number, tree_sum(members, len(members)), block.level)
    assert np.array_equal(summed.total(), tree_sum(trees, history.shards))


@given(histories())
def test_who_has_nothing_can_always_go_on(history):
    """Workers that stopped hold nothing up: a newcomer can do all that is left."""
    newcomer = history.workers + 1
    while not history.queue.done:
        overdue = set(history.queue.open_assignments())
        assert history.take(newcomer) or history.take_over(newcomer, overdue), "somebody has to wait"
        history.count(max(history.hands))
    assert sorted(history.leaves(*history.counted)) == list(range(history.shards))


@given(st.integers(1, 200))
def test_blocks_of_one_shard_are_handed_out_as_they_are_numbered_to_a_single_worker(shards):
    history = History(shards, 1, 1)
    while history.take(0):
        pass
    assert history.leaves(*(block for _, block in history.hands.values())) == list(range(shards))


def calls(shards: int, workers: int) -> int:
    """Count the calls when all workers are equally fast."""
    history, made = History(shards, workers, 1024), 0
    while not history.queue.done:
        made += sum(history.take(worker) for worker in range(workers))
        for number in list(history.hands):
            history.count(number)
    return made


def test_many_shards_take_few_calls():
    assert calls(1024, 16) < 240
    assert calls(1024, 1) <= 12
    assert calls(16 * 1024, 16) < 2 * calls(1024, 16), "logarithmic"


@pytest.mark.parametrize(("least", "expected"), [(1, 4), (8, 8), (100, 8)])
def test_blocks_are_larger_where_the_driver_would_be_busier_than_the_workers(least, expected):
    taken = WorkQueue(64, range(4), 1024, least).take(0, 0.0)
    assert taken is not None
    assert taken[1].leaves(64) == range(expected), "at most 6 of 64 shards of four workers, or half of a worker's range"


def seconds(shards: int, workers: int, slowness: float) -> float:
    """Return when the last shard is complete, if one of the workers takes `slowness` seconds for each, others one."""
    queue, busy_until = WorkQueue(shards, range(workers), 1024), [0.0] * workers
    calls: list[tuple[float, int, int]] = []
    now = 0.0
    while not queue.done:
        for worker in 2 * list(range(workers)):
            held = sum(one.worker == worker for one in queue.open_assignments().values())
            if held < 2 and (taken := queue.take(worker, now)):
                busy_until[worker] = max(now, busy_until[worker])
                busy_until[worker] += len(taken[1].leaves(shards)) * (1.0 if worker else slowness)
                calls.append((busy_until[worker], worker, taken[0]))
        calls.sort()
        now, _, number = calls.pop(0)
        queue.complete(number)
    return now


@pytest.mark.parametrize("each", [16, 64, 256])
@pytest.mark.parametrize("workers", [2, 3, 8, 32])
def test_a_worker_slower_by_half_holds_up_a_step_for_its_last_shards_only(workers, each):
    shards = workers * each
    assert seconds(shards, workers, 1.0) == each, "equal workers end together"
    least = shards / (workers - 1 + 1 / 1.5)
    assert seconds(shards, workers, 1.5) < 1.05 * least + 2 * 1.5, "its last two, and a twentieth for stolen ranges"


@given(histories())
def test_what_is_unassigned_and_what_is_open_follows_from_the_history(history):
    counted, held = set(history.leaves(*history.counted)), history.hands.items()
    assert set(history.queue.open_assignments()) == {n for n, (_, b) in held if set(history.leaves(b)) - counted}
    taken = counted | set(history.leaves(*(block for _, (_, block) in held)))
    assert history.queue.unassigned == history.shards - len(taken)
    assert history.queue.left == history.shards - len(counted)


@pytest.mark.parametrize(("shards", "workers"), [(16, 2), (64, 4), (1, 1), (3, 2)])
def test_the_first_shards_of_a_worker_are_those_that_it_takes_first(shards, workers):
    first = first_shards(shards, range(workers))
    history = History(shards, workers, 1024)
    for worker in range(workers):
        taken = history.queue.take(worker, 0.0)
        assert taken is None or set(taken[1].leaves(shards)) <= set(first[worker])


def test_a_lost_call_goes_to_the_next_who_asks():
    history = History(8, 2, 8)
    history.take(0)
    (number,) = history.hands
    lost = history.hands[number][1]
    assert history.queue.fail(number) == len(lost.leaves(8))
    history.hands.clear()
    history.take(1)
    ((_, again),) = history.hands.values()
    assert set(again.leaves(8)) <= set(lost.leaves(8))


def test_the_oldest_overdue_call_is_taken_over_first_and_the_first_answer_counts():
    history = History(2, 2, 1)
    history.take(0)
    history.take(1)
    first, second = history.hands
    assert history.take_over(1, {first, second})
    third = max(history.hands)
    assert history.hands[third][1] == history.hands[first][1]
    history.count(third)
    assert list(history.queue.open_assignments()) == [second]
    history.count(first)
    history.count(second)
    assert history.queue.done
    assert len(history.counted) == 2
