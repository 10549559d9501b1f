"""Whether the bundles of a trial find room on nodes, and folders that only some nodes have."""

import shutil

import pytest
import ray
from ray.cluster_utils import Cluster

from tune.execution.placement import (
    count_nodes_without,
    explain_shortage,
    max_concurrent_trials,
    place_bundles,
)

PROCESS, WORKER = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 0.6}


@pytest.mark.parametrize(
    ("gpus", "workers", "fits"),
    [([1.0, 1.0], 2, True), ([1.0, 1.0], 3, False), ([2.0], 3, True), ([2.0], 4, False), ([1.0, 2.0], 4, True)],
)
def test_a_bundle_is_whole_on_one_node(gpus, workers, fits):
    assert place_bundles([PROCESS, *[WORKER] * workers], [{"CPU": 8.0, "GPU": gpu} for gpu in gpus]) is fits


def test_what_is_taken_is_taken():
    free = [{"CPU": 3.0}]
    assert [place_bundles([PROCESS], free) for _ in range(4)] == [True, True, True, False]


@pytest.mark.slow
@pytest.mark.ray
def test_room_and_folders_of_two_nodes(tmp_path):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        cluster.add_node(num_cpus=3)
        ray.init(cluster.address, log_to_driver=False)
        pairs = [PROCESS, PROCESS]
        assert (
            max_concurrent_trials(pairs, 0),
            max_concurrent_trials(pairs, 1),
            max_concurrent_trials([PROCESS], 0),
        ) == (2, 1, 5)
        wide = [{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 1.0}]
        assert explain_shortage(wide) is None
        told = explain_shortage([{"CPU": 4.0}])
        assert told == "a trial needs 4 CPUs in 1 processes, each whole on a node, the cluster has 5 CPUs on 2 nodes"
        with pytest.raises(ValueError, match="search on a larger cluster"):
            max_concurrent_trials([{"CPU": 4.0}], 0)
        assert max_concurrent_trials([{"CPU": 4.0}], 3, grows=True) == 3
        assert count_nodes_without(tmp_path / "both") == 0
        assert list((tmp_path / "both").iterdir()) == []
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(tmp_path, ignore_errors=True)
