"""The conformance suite of executors: whatever computes the shards, the bits are the same (invariant 1)."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from torch.utils._pytree import tree_leaves, tree_map

from cluster import executors
from cluster.executor import RayExecutor
from metatrain.algorithms import ALGORITHMS
from metatrain.algorithms.updates import update_of
from metatrain.embedding import embed_all
from metatrain.evaluation.evaluate import make_shards
from metatrain.runs.checkpoints import params_sha256
from metatrain.settings import Config, ExecutorSettings
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state, restore, train
from metatrain.training.tree_sum import flatten, layout_of, unflatten
from metatrain.training.worker import Worker
from metatrain.types import Executor, Shard, ShardRequest
from tests import pictures
from tests.configurations import MIXTURE, RAGGED_TRAINING, method, tiny

CPU = torch.device("cpu")
Make = Callable[[Config], Executor]


def in_process(config: Config) -> Executor:
    return InProcess(Worker(config, CPU))


def on_ray(workers: int) -> Make:
    return lambda config: RayExecutor(tiny_with(config, workers))


def tiny_with(config: Config, workers: int) -> Config:
    return replace(config, executor=replace(config.executor, name="ray", workers=workers))


@contextmanager
def in_placement_group(config: Config) -> Iterator[Executor]:
    group = placement_group([{"CPU": 1}] * 3)
    ray.get(group.ready())
    executor = RayExecutor(tiny_with(config, 2), group)
    try:
        yield executor
    finally:
        executor.close()
        remove_placement_group(group)


EXECUTORS: dict[str, Make] = {"in_process": in_process, "ray-1": on_ray(1), "ray-3": on_ray(3)}


@pytest.fixture(params=["in_process", pytest.param("ray-1", marks=pytest.mark.slow), "ray-3"])
def make(request: pytest.FixtureRequest, local_ray: None) -> Make:
    return EXECUTORS[request.param]


def trained(executor: Executor, config: Config) -> str:
    state = initial_state(Worker(config, CPU).initial(), config.outer)
    for _ in train(state, executor, config.outer, config.executor.shard_size, update_of(config.algorithm)):
        pass
    return params_sha256(state.params)


@pytest.fixture(scope="module")
def reference() -> str:
    return trained(in_process(tiny()), tiny())


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_every_algorithm_ends_with_the_same_bits_after_a_resume(algorithm):
    config = tiny("model.width=4", *method(algorithm), "outer.steps=3", "outer.tasks_per_step=2")
    executor = in_process(config)
    state = initial_state(Worker(config, CPU).initial(), config.outer)
    for _ in train(state, executor, config.outer, config.executor.shard_size, update_of(config.algorithm)):
        break
    resumed = restore(state.snapshot(), config.outer)
    for _ in train(resumed, in_process(config), config.outer, config.executor.shard_size, update_of(config.algorithm)):
        pass
    assert params_sha256(resumed.params) == trained(executor, config)


@pytest.mark.parametrize("algorithm", ["imaml", "meta_lstm"])
def test_the_order_of_parameters_changes_no_bit(algorithm):
    """A worker on Ray gets them in another order; these methods add over all of them."""
    worker = Worker(tiny("model.width=4", *method(algorithm)), CPU)
    params = {name: value + 0.1 * torch.randn(value.shape) for name, value in worker.initial().items()}
    request, shard = ShardRequest("gradient", "train", 0), Shard(0, tuple(range(6)))
    expected = worker.gradient(request, params, shard).grads
    found = worker.gradient(request, dict(reversed(params.items())), shard).grads
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_parameters_and_tasks_are_aligned_in_memory_in_every_process_alike():
    """Products may be rounded otherwise where they are not."""
    worker = Worker(tiny("model.width=3"), CPU)
    params = worker.initial()
    sent = flatten(params)
    sent.flags.writeable = False
    received = unflatten(sent, layout_of(params))
    assert all(torch.equal(received[name], value) for name, value in params.items())
    (batch,) = worker.tasks(ShardRequest("gradient", "train", 0), Shard(0, (1,)))
    views = tree_map(lambda leaf: torch.cat([leaf[:1], leaf])[1:], batch.tasks)
    for leaf in (*received.values(), *tree_leaves(batch.tasks), *tree_leaves(worker.to_device(views))):
        assert leaf.data_ptr() % 64 == 0
    assert any(leaf.data_ptr() % 64 for leaf in tree_leaves(views))


@pytest.mark.slow  # `make test` has one on Ray, which loses a worker on its way
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_training_ends_with_the_same_bits_wherever_it_ran(make, algorithm):
    config = tiny(*method(algorithm))
    executor = make(config)
    assert trained(executor, config) == trained(in_process(config), config)
    assert sum(executor.report()["workers"].values()) == config.outer.steps * config.outer.tasks_per_step
    executor.close()
    executor.close()


@pytest.mark.parametrize("tasks", [RAGGED_TRAINING, MIXTURE], ids=["ragged", "mixture"])
def test_tasks_of_many_sizes_end_with_the_same_bits_wherever_they_were_computed(local_ray, tasks):
    config = tiny(*method("protonet"), tasks, "executor.shard_size=4")
    executor = RayExecutor(tiny_with(config, 3))
    assert trained(executor, config) == trained(in_process(config), config)
    executor.close()


def test_examples_are_embedded_to_the_same_bits(local_ray, tmp_path):
    root = pictures.write(tmp_path / "raw", pictures.split_files())
    shape = "{ways: 3, shots: 1, queries: 2}"
    tasks = f"{{name: image_folder, root: {root}, cache: {tmp_path}/cache, size: 12, train: {shape}, test: {shape}}}"
    config = tiny(f"tasks={tasks}", "model={name: conv4, width: 4, depth: 2}")
    here = Worker(config, CPU)
    expected = torch.cat([part.features for part in embed_all(here, in_process(config))])
    executor = RayExecutor(tiny_with(config, 2))
    assert torch.equal(torch.cat([part.features for part in embed_all(here, executor)]), expected)
    assert len(expected) == pictures.COPIES * sum(pictures.SPLIT_SIZES.values())
    executor.close()


def test_every_name_in_the_settings_opens_an_executor():
    assert set(get_args(get_type_hints(ExecutorSettings)["name"])) == set(executors.EXECUTORS)
    worker = Worker(tiny("executor.name=in_process"), CPU)
    with executors.open_executor(worker) as executor:
        assert isinstance(executor, InProcess)
        assert executor.worker is worker, "the worker is handed on, not built again"


def test_another_seed_or_shard_size_ends_elsewhere(reference):
    assert trained(in_process(tiny("seed=1")), tiny("seed=1")) != reference
    other = tiny("executor.shard_size=4")
    assert trained(in_process(other), other) != reference


@pytest.mark.slow
def test_scores_come_in_shard_order(make):
    config = tiny()
    executor, worker = make(config), Worker(config, CPU)
    params, request = worker.initial(), ShardRequest("score", "test", 0)
    shards = make_shards(0, 10, 3)
    found = list(executor.map(request, params, shards))
    for shard, scores in zip(shards, found, strict=True):
        expected = worker.score(request, params, shard).values
        assert all(torch.equal(scores.values[name], expected[name]) for name in expected)
    assert [len(scores.values["loss"]) for scores in found] == [3, 3, 3, 1]
    executor.close()


@pytest.mark.slow
def test_a_baseline_needs_no_parameters(make):
    executor = make(tiny())
    (scores,) = executor.map(ShardRequest("score", "test", 0, "nearest_neighbour"), {}, make_shards(0, 4, 4))
    assert scores.values["accuracy"].shape == (4, 1)
    executor.close()


@pytest.mark.slow
def test_inside_a_placement_group(local_ray, reference):
    with in_placement_group(tiny()) as executor:
        assert trained(executor, tiny()) == reference


def test_a_worker_killed_with_a_shard_in_flight_changes_no_bit(local_ray):
    config = tiny("outer.steps=8", "outer.tasks_per_step=12", "model.width=32")
    expected = trained(in_process(config), config)
    executor = RayExecutor(tiny_with(config, 2))
    pids = executor.pids()
    killed = threading.Event()

    def kill() -> None:
        while sum(executor.report()["workers"].values()) < 24:
            time.sleep(0.01)
        os.kill(pids[1], signal.SIGKILL)
        killed.set()

    killer = threading.Thread(target=kill)
    killer.start()
    assert trained(executor, config) == expected
    killer.join()
    report = executor.report()
    assert killed.is_set()
    assert report["retries"] >= 1
    assert sum(report["workers"].values()) == 96, "every task counts once"
    assert report["events"]["worker-lost"] == 1
    assert len(set(executor.pids()) - set(pids)) == 1, "the lost worker was replaced"
    executor.close()


@pytest.mark.slow
def test_three_workers_share_the_work(local_ray):
    config = tiny("outer.tasks_per_step=12")
    executor = RayExecutor(tiny_with(config, 3))
    executor.pids()
    trained(executor, config)
    done = sorted(executor.report()["workers"].values())
    assert sum(done) == 72
    assert done[-2] >= 0.2 * 72
    executor.close()
