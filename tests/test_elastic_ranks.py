"""Ranks of Ray Train on several nodes that join and vanish while a run lasts: the bits of one process."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

from metatrain.cli.training import Trained
from tests.chaos.drivers import recorded
from tests.nodes import Nodes, local_nodes
from tests.test_ray_train import configured, lines, on_ranks, once_at, pids, train

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

SEEN_S = 10.0
"""Seconds in which Train is to see another node: it looks every second here."""


def waiting(gate: Path) -> list[str]:
    """Have the ninth step wait for a file, and the run be kept after a validation alone."""
    waits = [f"tasks.{key}={value}" for key, value in {"harm": "wait", "at": 32, "gate": gate}.items()]
    return ["tasks.name=tests.faults:Harmful", *waits, "checkpoint.every=100"]


@pytest.fixture(scope="module")
def started() -> Iterator[Nodes]:
    with local_nodes() as nodes:
        yield nodes


@pytest.fixture
def nodes(started: Nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setattr("cluster.train_ranks.LOOK_FOR_ROOM_S", 1.0)
    yield started
    started.clear()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(configured(tmp_path_factory.mktemp("alone")))


def count_anew() -> None:
    """Have Train's part that counts nodes do so now, not every 20 s."""
    ray.get(get_or_create_autoscaling_coordinator().get_reserved_resources.remote("nobody", recompute=True))


def test_ranks_on_two_nodes_end_with_the_bits_of_one_process(nodes, alone, tmp_path):
    for _ in range(2):
        nodes.add()
    found = train(on_ranks(tmp_path, 2))
    assert found.result.params_sha256 == alone.result.params_sha256
    assert len(found.result.executor["workers"]) == 2


def test_a_node_that_joins_adds_a_rank_and_no_step_is_taken_twice(nodes, alone, tmp_path):
    nodes.add()
    root, gate = tmp_path / "runs", tmp_path / "gate"

    def join() -> None:
        nodes.add()
        count_anew()
        time.sleep(SEEN_S)
        gate.touch()

    with once_at(root, 3, join) as joined:
        found = train(on_ranks(root, "{min: 1, max: 2}", *waiting(gate)))
    assert joined.is_set()
    assert [len(processes) for processes in pids(root)] == [1, 2]
    assert found.result.params_sha256 == alone.result.params_sha256
    assert recorded(found.result.run_dir) == recorded(alone.result.run_dir), "no step lost or recorded twice"
    recorded_lines = lines(root)
    began = [number for number, line in enumerate(recorded_lines) if line.get("event") == "ranks"][1]
    last = max(line["step"] for line in recorded_lines[:began] if "train/loss" in line)
    assert recorded_lines[began]["step"] == last, "it goes on from the last step of one rank"
    assert sum(found.result.executor["workers"].values()) == (24 - last) * 4


def test_a_node_that_vanishes_takes_its_rank_away_for_good(nodes, alone, tmp_path):
    _, vanishing = nodes.add(), nodes.add()

    root, gate = tmp_path / "runs", tmp_path / "gate"

    def leave() -> None:
        nodes.remove(vanishing)
        count_anew()
        gate.touch()

    with once_at(root, 6, leave) as left:
        found = train(on_ranks(root, "{min: 1, max: 2}", *waiting(gate)))
    assert left.is_set()
    assert [len(processes) for processes in pids(root)] == [2, 1]
    assert found.result.params_sha256 == alone.result.params_sha256
    assert recorded(found.result.run_dir) == recorded(alone.result.run_dir), "no step lost or recorded twice"
