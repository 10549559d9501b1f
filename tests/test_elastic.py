"""Nodes that join, release_run, give notice and vanish: several Ray nodes on one machine."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.executor import RayExecutor
from metatrain.errors import WorkersLost
from metatrain.runs import checkpoints
from metatrain.settings import WorkerRange
from metatrain.tracking.jsonl import JsonlRecorder, read_lines
from metatrain.trainer import new_run
from metatrain.trainer import run as drive
from metatrain.training.worker import driver_worker
from tests.configurations import tiny
from tests.faults import Run, many_steps, on_ray, running
from tests.nodes import Nodes, local_nodes

pytestmark = pytest.mark.ray
LARGE = "model.width=32"
"""Gradients of 120 KB, which do not travel within messages here."""


@pytest.fixture(scope="module")
def started() -> Iterator[Nodes]:
    with local_nodes() as nodes:
        yield nodes


@pytest.fixture
def nodes(started: Nodes) -> Iterator[Nodes]:
    yield started
    started.clear()


def pid_on(run: Run, node: Any) -> int:
    """Return the pid of the worker on a node; 0 without one."""
    handles = run.executor._pool.ready()
    return next((handle.info.pid for handle in handles if handle.info.node == node.node_id), 0)


@pytest.mark.slow
def test_nodes_that_vanish_come_or_give_notice_change_no_bit(nodes):
    _, vanishing, warned = nodes.add(), nodes.add(), nodes.add()
    with running(on_ray(many_steps(), WorkerRange(1, 3))) as run:
        run.executor.pids()
        run.step(3)
        nodes.remove(vanishing)
        run.until(lambda: run.count_events("worker-lost") == 1, 60)
        assert run.executor.health()["workers"] == 2
        new = nodes.add()
        run.until(lambda: run.done_by(pid_on(run, new)) > 0, 30)
        assert run.count_events("worker-joined") == 1

        leaving = pid_on(run, warned)
        nodes.drain(warned)
        run.until(lambda: run.count_events("node-leaving") == 1, 30)
        run.until(lambda: pid_on(run, warned) == 0, 30)
        done = run.done_by(leaving)
        instead = nodes.add()
        run.until(lambda: run.done_by(pid_on(run, instead)) > 0, 60)
        assert run.done_by(leaving) == done, "it gets no more work"
        assert run.count_events("worker-lost") == 1, "who leaves after notice is not lost"
        assert run.count_events("worker-joined") == 2
        run.check()


@pytest.mark.slow
def test_a_node_that_vanishes_with_results_in_its_object_store_changes_no_bit(nodes):
    vanishing, _ = nodes.add(2), nodes.add()
    config = many_steps(LARGE, "outer.tasks_per_step=48")
    with running(on_ray(config, WorkerRange(1, 3))) as run:
        run.executor.pids()
        run.step(2)
        thief = threading.Timer(run.step() / 2, nodes.remove, [vanishing])
        thief.start()
        run.step()
        assert not thief.is_alive()
        # Where a step is over sooner than its half, the results that are lost are of the next one.
        run.until(lambda: run.executor.report()["retries"] > 0, 60)
        run.until(lambda: run.count_events("worker-lost") == 2, 60)
        run.check()


@pytest.mark.slow
def test_when_all_workers_are_gone_the_last_step_is_kept(nodes, tmp_path):
    only = nodes.add()
    config = on_ray(tiny(f"runs.root={tmp_path}", "checkpoint.every=1000", "outer.steps=1000"), 1, deadline=15.0)
    home, executor = new_run(config), RayExecutor(config)
    recorder = JsonlRecorder(home.metrics)
    gone: list[float] = []

    def when_asked() -> bool:
        """Take the node away once four steps are done; it is asked after steps and between shards of a validation."""
        if not gone and home.metrics.exists() and last_step() >= 4:
            nodes.remove(only)
            gone.append(time.monotonic())
        return False

    def last_step() -> int:
        return max((line["step"] for line in read_lines(home.metrics) if "train/loss" in line), default=0)

    with pytest.raises(WorkersLost, match=r"^(no worker|none of 1 workers) .* for 15 s \(executor.deadline\)"):
        drive(driver_worker(config), executor, recorder, home, when_asked)
    assert time.monotonic() - gone[0] < 40
    executor.close()
    recorder.close("failed")
    found = checkpoints.newest(home.checkpoints)
    assert found is not None
    assert found.snapshot["step"] == last_step() >= 4
    assert any(str(line.get("event")).startswith("worker-") for line in read_lines(home.metrics))


UNRELIABLE = """
import json, ray
from tests.faults import many_steps, on_ray, running
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
with running(on_ray(many_steps("outer.tasks_per_step=4"), 2)) as run:
    run.executor.pids()
    run.step(3)
    run.until(lambda: {"unreached", "retries"} <= run.executor.health().keys(), 120)  # by chance
    run.check()
    print(json.dumps(run.executor.health()))
ray.shutdown()
"""


@pytest.mark.slow
def test_requests_and_answers_that_get_lost_change_no_bit():
    """Slow: it takes Ray two seconds to give a call up, and nearly half of them are lost."""
    lossy = {"num_failures": -1, "req_failure_prob": 25, "resp_failure_prob": 25, "in_flight_failure_prob": 0}
    failures = json.dumps({"CoreWorkerService.grpc_client.PushTask": lossy})
    env = os.environ | {"RAY_testing_rpc_failure": failures, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", UNRELIABLE], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    health = json.loads(done.stdout.splitlines()[-1])
    assert health["unreached"] > 0
    assert health["retries"] > 0
