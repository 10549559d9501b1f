"""Several Ray nodes on one machine, which join, vanish and give notice."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster


class Nodes:
    """A cluster whose head, which runs the driver, has no CPU for workers."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._there: list[Any] = []

    def add(self, cpus: int = 1) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ray._private.utils.set_sigterm_handler", lambda handler: None)  # threads add nodes too
            self._there.append(self.cluster.add_node(num_cpus=cpus))
        return self._there[-1]

    def remove(self, node: Any) -> None:
        self._there.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def clear(self) -> None:
        for node in list(self._there):
            self.remove(node)

    def drain(self, node: Any) -> None:
        """Give notice as a cluster does for a spot machine that is about to be taken away."""
        notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        ray_command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", self.cluster.address]
        which = ["--node-id", node.node_id, "--deadline-remaining-seconds", "300"]
        subprocess.run([*ray_command, *which, *notice], check=True, capture_output=True, timeout=60)


@contextmanager
def local_nodes() -> Iterator[Nodes]:
    """Keep a cluster without nodes for workers, and join it."""
    short = TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)  # as socket names have to be
    with short as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_max_direct_call_object_size", "20000")
        patch.setenv("RAY_TMPDIR", folder)  # its address is noted in a folder of its own: nobody else is to join it
        nodes = Nodes()
        ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level="WARNING")
        yield nodes
        ray.shutdown()
        nodes.cluster.shutdown()
