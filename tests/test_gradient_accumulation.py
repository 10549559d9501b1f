"""Check that a worker's memory depends on the tasks of a shard, not on those of a step: gradients are accumulated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.peak import peak_bytes
from cluster.actor import CallId, ShardActor
from metatrain.evaluation.evaluate import make_shards
from metatrain.training.in_process import InProcess
from metatrain.training.tree_sum import Block, flatten
from metatrain.training.worker import Worker
from metatrain.types import ShardRequest
from tests.configurations import tiny

CPU = torch.device("cpu")
FEW, MANY = 8, 256
REQUEST = ShardRequest("gradient", "train", 0)
SETTINGS = ("model={name: mlp, width: 32, depth: 2}", "engine.compile=off", "executor.shard_size=2")


def in_process(tasks: int) -> Callable[[], Any]:
    worker = Worker(tiny(*SETTINGS, f"outer.tasks_per_step={tasks}"), CPU)
    executor, params = InProcess(worker), worker.initial()
    return lambda: executor.sum(REQUEST, params, make_shards(0, tasks, 2))


def actor(tasks: int) -> Callable[[], Any]:
    config = tiny(*SETTINGS, f"outer.tasks_per_step={tasks}")
    vector, call = flatten(Worker(config, CPU).initial()), CallId(0, Block(0, 0), 0)
    worker = ShardActor(config)
    return lambda: worker.compute(call, REQUEST, vector, make_shards(0, tasks, 2))


@pytest.mark.parametrize("prepare", [in_process, actor])
def test_a_step_of_many_tasks_adds_the_partial_sums_of_the_tree_alone(prepare):
    worker = Worker(tiny(*SETTINGS), CPU)
    theta = sum(value.nbytes for value in worker.initial().values())
    one_task = sum(leaf[0].nbytes for part in worker.tasks(REQUEST, make_shards(0, 2, 2)[0])[0].tasks for leaf in part)
    few, many = (peak_bytes(prepare(tasks)) for tasks in (FEW, MANY))
    deeper = (MANY // 2).bit_length() - (FEW // 2).bit_length()
    assert many - few <= (deeper + 1) * theta
    assert deeper * theta + one_task < (MANY - FEW) * one_task, "which all tasks of the step would take"


def test_a_chunk_bounds_the_tasks_whose_graph_is_kept():
    def peak(*settings: str) -> int:
        worker = Worker(tiny(*SETTINGS, "engine.vectorize=vmap", "executor.shard_size=16", *settings), CPU)
        params, shard = worker.to_device(worker.initial()), make_shards(0, 16, 16)[0]
        tasks = worker.tasks(REQUEST, shard)
        return peak_bytes(lambda: worker.gradient(REQUEST, params, shard, tasks))

    assert peak("engine.chunk=2") < 0.3 * peak()
