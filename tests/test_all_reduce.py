"""Ranks that train together: the bits of one process, errors that reach all ranks, ranks that are lost."""

import os
import signal
from functools import partial

import pytest
import torch

from metatrain.errors import TaskFailed, WorkersLost
from metatrain.evaluation.evaluate import make_shards
from metatrain.runs.checkpoints import params_sha256
from metatrain.settings import Config
from metatrain.training.all_reduce import AllReduce, divide
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state, train, with_statistics
from metatrain.training.ranks import Ranks
from metatrain.training.tree_sum import TreeSum, tree_sum
from metatrain.training.worker import Worker
from metatrain.types import Executor, ShardRequest
from tests.configurations import MIXTURE, method, tiny
from tests.faults import harmful
from tests.gloo_ranks import on_ranks

CPU = torch.device("cpu")


def everything(executor: Executor, worker: Worker) -> dict[str, object]:
    """Train, keep statistics and score; what came of it."""
    config = worker.config
    state = initial_state(worker.initial(), config.outer)
    metrics = list(train(state, executor, config.outer, config.executor.shard_size))
    kept = with_statistics(worker.algorithm, executor, state.params, config.executor.shard_size)
    request, shards = ShardRequest("score", "test", 0), make_shards(0, 10, 3)
    scores = [part.values for part in executor.map(request, kept, shards)]
    (nearest,) = executor.map(ShardRequest("score", "test", 0, "nearest_neighbour"), {}, make_shards(0, 4, 4))
    return {
        "params": params_sha256(kept),
        "metrics": metrics,
        "scores": [*scores, nearest.values],
        "tasks": sum(executor.report()["workers"].values()),
    }


CONFIGS = {
    "one_task": tiny("outer.tasks_per_step=1", "outer.steps=2", "outer.clip_norm=0.1"),
    "maml": tiny("outer.steps=3"),
    "imaml": tiny("model.width=4", *method("imaml"), "outer.tasks_per_step=7", "outer.steps=2"),
    "simple_shot": tiny("model.width=4", *method("simple_shot"), "outer.steps=2"),
    "mixture": tiny(*method("protonet"), MIXTURE, "executor.shard_size=4", "outer.steps=2"),
}


def train_all(ranks: Ranks) -> dict[str, object]:
    found = {}
    for name, config in CONFIGS.items():
        worker = Worker(config, CPU)
        executor = AllReduce(worker, ranks)
        found[name] = everything(executor, worker)
        executor.close()
    return found


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)  # type: ignore[arg-type]
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)  # type: ignore
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))  # type: ignore
    return one == other


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_rank_ends_with_the_bits_of_one_process(tmp_path, size):
    expected = {}
    for name, config in CONFIGS.items():
        worker = Worker(config, CPU)
        expected[name] = everything(InProcess(worker), worker)
    for found in on_ranks(tmp_path, size, train_all):
        for name, of_one in expected.items():
            wrong = [part for part, value in of_one.items() if not same(found[name][part], value)]
            assert not wrong, f"{name}: other bits than in one process"


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shards", [1, 2, 6, 7, 13, 64])
def test_blocks_are_nodes_of_the_tree_and_hold_every_shard_once(shards, ranks):
    blocks = divide(shards, ranks)
    assert [leaf for own in blocks for block in own for leaf in block.leaves(shards)] == list(range(shards))
    sizes = [sum(len(block.leaves(shards)) for block in own) for own in blocks]
    assert max(sizes) - min(sizes) <= 1
    leaves = torch.rand(shards, generator=torch.Generator().manual_seed(shards)) * 10.0 ** torch.arange(shards)
    total = TreeSum(shards)
    for own in reversed(blocks):
        for block in own:
            members = block.leaves(shards)
            total.add(block.number, tree_sum([leaves[leaf] for leaf in members], len(members)), block.level)
    assert torch.equal(total.total(), tree_sum(leaves, shards))


def test_two_ranks_of_two_to_the_n_shards_send_one_block_each():
    assert [len(own) for own in divide(64, 4)] == [1, 1, 1, 1]


def fail_in(ranks: Ranks, config: Config, at: int) -> str:
    worker = Worker(config, CPU)
    params = worker.initial()
    with pytest.raises(TaskFailed) as failed:
        AllReduce(worker, ranks).sum(ShardRequest("gradient", "train", 2), params, make_shards(0, 4, 1))
    kept = [ranks.once(lambda: at)] if ranks.leads else []
    with pytest.raises(TaskFailed):
        ranks.gather(lambda: 0)
    return f"{failed.value} {kept}"


def fail_elsewhere(ranks: Ranks) -> str:
    """Of three ranks the second fails by itself, and the others are about to exchange different things."""
    if ranks.rank == 1:
        raise KeyError("mine")
    if ranks.leads:
        ranks.once(lambda: 1)
    else:
        ranks.gather(lambda: 1)
    return "not told"


def fail_alone(ranks: Ranks) -> str:
    """What rank 0 does for all fails there."""

    def full() -> None:
        raise OSError(28, "No space left on device")

    ranks.once(full)
    return "not told"


def share(ranks: Ranks) -> list[object]:
    found = [ranks.gather(lambda: {"rank": ranks.rank, "x": torch.full((ranks.rank + 1,), 0.5)})]
    return [*found, ranks.once(lambda: (ranks.rank, torch.arange(3), None)), ranks.once(lambda: None)]


def die(ranks: Ranks) -> str:
    ranks.gather(lambda: 0)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(WorkersLost, match=r"^a rank has gone"):
        for _ in range(2):
            ranks.gather(lambda: 0)
    if ranks.leads:
        return str(ranks.once(lambda: "kept"))
    with pytest.raises(WorkersLost):
        ranks.once(lambda: "not here")
    return "left"


def test_values_reach_every_rank_in_order(tmp_path):
    for values, of_first, nothing in on_ranks(tmp_path, 3, share):
        assert [one["rank"] for one in values] == [0, 1, 2]
        assert [one["x"].tolist() for one in values] == [[0.5] * n for n in (1, 2, 3)]
        assert (of_first[0], of_first[1].tolist(), nothing) == (0, [0, 1, 2], None)


def test_a_task_that_raises_on_one_rank_ends_all_with_its_error(tmp_path):
    first, second = on_ranks(tmp_path, 2, partial(fail_in, config=harmful("raise", 3), at=3))
    assert first.startswith("train task 3 at step 2: KeyError: 'no such task'"), first
    assert first.endswith(" [3]"), "rank 0 keeps what was computed"
    assert second == first.removesuffix("[3]") + "[]"


@pytest.mark.slow
def test_an_error_of_one_rank_alone_reaches_the_others_whatever_they_wait_for(tmp_path):
    first, second, third = on_ranks(tmp_path, 3, fail_elsewhere)
    assert second == "KeyError: 'mine'"
    assert first == third == "TaskFailed: KeyError: 'mine'"


@pytest.mark.slow
def test_an_error_of_what_rank_0_does_for_all_reaches_all(tmp_path):
    first, second = on_ranks(tmp_path, 2, fail_alone)
    assert first == "OSError: [Errno 28] No space left on device"
    assert second == f"TaskFailed: {first}"


def test_a_rank_that_is_killed_is_noticed_and_rank_0_goes_on_alone_to_keep_the_run(tmp_path):
    assert on_ranks(tmp_path, 3, die) == ["kept", None, "left"]
