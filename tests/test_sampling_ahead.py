"""Sampling ahead of the next step: the same bits, no task twice, bounded memory, and errors where they belong."""

import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import ray
import torch

from cluster.actor import ActorInfo, BlockReply, CallId, ShardActor
from cluster.dispatcher import Dispatcher, DispatchState, PendingCall, _fetch
from cluster.executor import RayExecutor
from cluster.pace import NextStep, Pace
from cluster.worker_pool import WorkerHandle
from metatrain.errors import TaskFailed
from metatrain.evaluation.evaluate import make_shards
from metatrain.runs.checkpoints import params_sha256
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state, train
from metatrain.training.profiling import Meter
from metatrain.training.tree_sum import Block, flatten
from metatrain.training.worker import Worker
from metatrain.types import Shard, ShardRequest
from tasks.sources.strokes import Strokes
from tests.configurations import tiny

REQUEST = ShardRequest("gradient", "train", 0)
SHARDS = make_shards(0, 4, 1)


@dataclass(frozen=True)
class Slow(Strokes):
    """Strokes whose tasks take 5 ms to sample; task 2 fails in workers that are told so."""

    fails: bool = False

    def distribution(self, split: Any, episode: Any, seed: int) -> Any:
        tasks = super().distribution(split, episode, seed)

        def episodes(indices: Any) -> Any:
            time.sleep(0.005 * len(indices))
            if self.fails and 2 in indices:
                raise KeyError("no such task")
            return tasks.episodes(indices)

        return SimpleNamespace(spec=tasks.spec, episodes=episodes)


def config(*overrides: str) -> Any:
    return tiny("engine.compile=off", "tasks.name=tests.test_sampling_ahead:Slow", *overrides)


class Counted:
    """An actor in this process, and the shards whose tasks it sampled."""

    def __init__(self, *overrides: str) -> None:
        self.actor = ShardActor(config(*overrides))
        self.sampled: list[Shard] = []
        self.vector = flatten(self.actor._worker.initial())
        sample = self.actor._worker.tasks

        def tasks(request: ShardRequest, shard: Shard) -> Any:
            self.sampled.append(shard)
            return sample(request, shard)

        self.actor._worker.tasks = tasks  # type: ignore[method-assign]

    def compute(self, shards: list[Shard], request: ShardRequest = REQUEST) -> BlockReply:
        level = math.ceil(math.log2(len(shards)))
        return self.actor.compute(CallId(0, Block(level, 0), 1), request, self.vector, shards)


def test_tasks_sampled_ahead_are_used_once_and_give_the_same_bits():
    here, other = Counted(), Counted()
    here.actor.sample(REQUEST, SHARDS[:3])
    assert here.sampled == SHARDS[:3]
    found = here.compute(SHARDS)
    assert here.sampled == SHARDS, "only the last one was left to sample"
    assert np.array_equal(found.total.vector, other.compute(SHARDS).total.vector)
    assert found.parts["sample"] >= 4 * 0.005, "the time of sampling ahead counts"
    here.compute(SHARDS)
    assert here.sampled == SHARDS + SHARDS, "nothing is kept"


def test_other_requests_do_not_see_tasks_sampled_ahead():
    here = Counted()
    here.actor.sample(REQUEST, SHARDS)
    here.compute(SHARDS, ShardRequest("score", "train", 0))
    assert here.sampled == SHARDS + SHARDS


def test_tasks_that_were_not_asked_for_are_forgotten_and_memory_is_bounded():
    here = Counted()
    here.actor.sample(REQUEST, SHARDS)
    with patch("cluster.actor._AHEAD_BYTES", 1):
        here.actor.sample(REQUEST, SHARDS[2:])
    assert list(here.actor._ahead) == [("train", SHARDS[2].indices)]


def test_a_task_that_fails_ahead_of_its_step_fails_in_it():
    here = Counted("tasks.fails=true")
    here.actor.sample(REQUEST, SHARDS)
    here.compute(SHARDS[:2])
    with pytest.raises(TaskFailed, match="train task 2 at step 0"):
        here.compute(SHARDS[2:])


def test_the_next_step_begins_where_this_one_ends():
    step = NextStep(make_shards(8, 8, 2), [5, 7])
    assert [shard.indices for shard in step.take(5)] == [(16, 17)]
    assert [shard.indices for shard in step.take(7)] == [(20, 21)]
    assert not step.take(5), "once"
    assert not step.take(6), "a worker that came later"


def test_workers_sample_ahead_where_it_takes_longer_than_asking_them():
    quick, slow = Pace(), Pace()
    quick.add(0.1, 1e-5)
    slow.add(0.1, 1e-3)
    shards = make_shards(0, 16, 1)
    assert not NextStep(shards, [0, 1]).is_worth_sampling(quick)
    assert NextStep(shards, [0, 1]).is_worth_sampling(slow)
    assert not NextStep(shards, range(100)).is_worth_sampling(slow), "the driver would be busy for 30 ms"
    assert not NextStep(shards, []).is_worth_sampling(slow)


def test_blocks_grow_where_replies_would_occupy_the_driver_for_longer_than_workers_compute():
    pace = Pace()
    assert pace.least_block(100, 1000) == 1, "before the first step"
    pace.add(0.05)
    pace.driver = 0.002
    assert pace.least_block(2, 16) == 1
    assert pace.least_block(100, 1000) == 4, "0.2 s for all workers, 0.05 s for a shard"
    assert pace.least_block(10**6, 1000) == 1000
    instant = Pace(driver=0.002)
    instant.add(0.0)
    assert instant.least_block(2, 16) == 16


class Watched(ShardActor):
    """Counts the shards that were sampled ahead and asked for."""

    hits = 0

    def _take_sampled(self, request: ShardRequest, shard: Shard) -> Any:
        tasks = super()._take_sampled(request, shard)
        self.hits += tasks is not None
        return tasks

    def count_hits(self) -> int:
        return self.hits


@pytest.mark.parametrize("workers", [1, 2])
def test_training_on_ray_samples_ahead_and_ends_with_the_same_bits(local_ray, workers):
    alone = config("outer.steps=5", "outer.tasks_per_step=8")
    settings = replace(alone, executor=replace(alone.executor, name="ray", workers=workers))
    with patch("cluster.worker_pool.ShardActor", Watched):
        executor = RayExecutor(settings)
        executor.pids()
        found = trained(executor, settings)
        hits = sum(ray.get([handle.actor.count_hits.remote() for handle in executor._pool.ready()]))
        executor.close()
    assert hits >= 4, "half of the shards of steps 1 to 4, but for what others took"
    assert found == trained(InProcess(Worker(alone, torch.device("cpu"))), alone)


def trained(executor: Any, settings: Any) -> str:
    state = initial_state(Worker(settings, torch.device("cpu")).initial(), settings.outer)
    for _ in train(state, executor, settings.outer, settings.executor.shard_size):
        pass
    return params_sha256(state.params)


@ray.remote(num_cpus=0)
def _answer(seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return "answer"


@ray.remote(num_cpus=0)
def _fail() -> None:
    raise KeyError("no answer")


def test_a_reply_that_has_come_is_not_overdue(local_ray):
    pool: Any = SimpleNamespace(handles={}, ready=list)
    dispatcher = Dispatcher(DispatchState(pool, SimpleNamespace(), Meter()), REQUEST, None, SHARDS, 4)  # type: ignore[arg-type]
    dispatcher._pace.add(0.01)
    here, late = ray.put("a reply"), _answer.remote(60.0)
    for reference, name in ((here, "here"), (late, "late")):
        call = CallId(0, Block(0, 0), 1)
        worker: Any = SimpleNamespace(number=name)
        dispatcher._state.pending[reference] = PendingCall(worker, dispatcher, call, 1, time.monotonic() - 9)
    assert dispatcher._count_overdue() == {"late": 1}
    del dispatcher._state.pending[late]
    assert not dispatcher._count_overdue(), "between two searches"
    ray.cancel(late, force=True)


def test_replies_owed_since_earlier_steps_reassign_no_block_of_this_one(local_ray):
    events = Counter[str]()
    handle = WorkerHandle(0, Mock(), None, ActorInfo(0, "node", "host"))
    state = DispatchState(  # type: ignore[arg-type]
        SimpleNamespace(handles={0: handle}, ready=lambda: [handle]),
        SimpleNamespace(count=lambda kind: events.update([kind])),
        Meter(),
    )
    earlier, dispatcher = (Dispatcher(state, REQUEST, None, SHARDS, 4) for _ in range(2))
    number, block = dispatcher._queue.take(1, 0.0) or (0, Block(0, 0))
    dispatcher._pace.add(0.01)
    late = _answer.remote(60.0)
    for owner, calls in ((earlier, 0), (dispatcher, 1)):
        call = PendingCall(WorkerHandle(1, None, None), owner, CallId(0, block, number), 1, time.monotonic() - 9)
        state.pending[late] = call
        dispatcher._overdue_checked = 0.0
        dispatcher._reassign_overdue()
        assert handle.actor.compute.remote.call_count == calls, "attempts are numbered from 1 in every step"
    ray.cancel(late, force=True)


def test_replies_are_fetched_at_once_unless_one_has_failed(local_ray):
    good = [_answer.remote() for _ in range(3)]
    assert _fetch(good) == dict.fromkeys(good, "answer")
    assert _fetch([*good, _fail.remote()]) == {}
    assert _fetch(good[:1]) == {}, "one is read where errors are handled"
