"""Limit the workers of a node, and broadcast parameters once to each: several Ray nodes on one machine."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import yaml

import cluster.executor
from cluster.executor import broadcast
from metatrain.settings import WorkerRange
from tests.command_line import metatrain
from tests.configurations import CONFIGS, TINY, tiny
from tests.faults import Run, many_steps, on_ray, running
from tests.nodes import Nodes, local_nodes
from tune.config.search_config import load_search_config


@pytest.fixture(scope="module")
def started() -> Iterator[Nodes]:
    with local_nodes() as nodes:
        yield nodes


@pytest.fixture
def nodes(started: Nodes) -> Iterator[Nodes]:
    yield started
    started.clear()


def by_node(run: Run) -> Counter[str]:
    return Counter(worker.node for worker in run.executor._pool.ready())


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_has_at_most_so_many_workers_and_later_nodes_too(nodes):
    first, second = nodes.add(4), nodes.add(4)
    config = on_ray(many_steps(), WorkerRange(1, 5), workers_per_node=2)
    with running(config) as run:
        run.until(lambda: len(run.executor._pool.ready()) == 4, 60)
        run.step(20)
        assert by_node(run) == {first.node_id: 2, second.node_id: 2}, "the fifth waits, though there are free cores"
        third = nodes.add(4)
        run.until(lambda: by_node(run)[third.node_id] == 1, 60)
        run.check()


@pytest.mark.ray
@pytest.mark.slow
def test_two_runs_do_not_share_a_limit(nodes):
    node = nodes.add(4)
    one_each = on_ray(many_steps(), 1, workers_per_node=1)
    with running(one_each) as first, running(one_each) as second:
        for run in (first, second):
            run.executor.pids()
            assert by_node(run) == {node.node_id: 1}


@pytest.mark.ray
@pytest.mark.slow
def test_parameters_are_sent_once_to_a_node_of_several_workers(nodes, monkeypatch):
    sent: list[Any] = []

    def noted(vector: Any) -> Any:
        sent.append(broadcast(vector))
        return sent[-1]

    monkeypatch.setattr(cluster.executor, "broadcast", noted)
    there = [nodes.add(3), nodes.add(1)]
    config = on_ray(many_steps("model.width=32", "outer.tasks_per_step=48"), 4)
    with running(config) as run:
        pids = run.executor.pids()
        run.step(3)
        assert all(run.done_by(pid) for pid in pids) and by_node(run)[there[0].node_id] == 3
        known = {ray.get_runtime_context().get_node_id(), *(node.node_id for node in there)}
        end, found = time.monotonic() + 20, []
        while set(found) != known and time.monotonic() < end:
            (places,) = ray.experimental.get_object_locations(sent[-1:]).values()
            found = places["node_ids"]
            time.sleep(0.1)
        assert sorted(found) == sorted(known), "one copy of the parameters in each node's object store"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("executor.workers_per_node=1",), "has no effect with in_process: set executor.name to ray, or remove it"),
        (("executor.name=ray_train", "executor.workers_per_node=1"), "has no effect with ray_train"),
        (("executor.name=ray", "executor.workers_per_node=0"), "executor.workers_per_node"),
        (("executor.name=ray", "executor.workers_per_node=101"), "executor.workers_per_node"),
    ],
)
def test_a_limit_without_effect_is_refused(settings, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        tiny(*settings)


def test_a_search_refuses_it():
    on = ["executor.name=ray", "executor.workers_per_node=1"]
    with pytest.raises(ValueError, match="workers_per_node: a search places the workers of its trials itself"):
        load_search_config(CONFIGS / "search-sinusoid-lr.yaml", on)


def test_more_workers_than_this_machine_may_have_are_refused(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    on = ("executor.name=ray", "executor.workers=3", "executor.workers_per_node=2")
    done = metatrain(tmp_path, "train", "tiny.yaml", *on, expect=2)
    assert "is one node, where 2 of 3 workers may run: lower executor.workers, or set executor.address" in done.err
    assert not (tmp_path / "runs").exists()
