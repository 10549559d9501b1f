"""Workers that stop, die, fail to start or raise: the run goes on with the same bits, or fails with the reason."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metatrain.errors import TaskFailed, WorkersLost
from metatrain.evaluation.evaluate import make_shards
from metatrain.types import ShardRequest
from tests.faults import harmful, many_steps, on_ray, running, stopped

pytestmark = pytest.mark.ray


@pytest.mark.slow
@pytest.mark.alone
def test_a_stopped_worker_is_waited_for_by_nobody_and_given_work_again_when_it_is_back(local_ray):
    config = many_steps()
    with running(on_ray(config, 2, timeout=60.0)) as run:
        pid, _ = run.executor.pids()
        run.until(lambda: run.done_by(pid) > 0, 30)
        before = run.step(20)
        with stopped(pid):
            run.until(lambda: run.count_events("worker-silent") == 1, 30)
            assert run.step(20) < before / 0.3, "its calls hold up no later step"
            done = run.done_by(pid)
        run.until(lambda: run.count_events("worker-back") == 1, 30)
        run.until(lambda: run.done_by(pid) > done, 30)
        assert run.count_events("worker-lost") == 0
        assert run.executor.health()["stragglers"] > 0
        assert run.executor.health()["workers"] == 2
        run.check()


@pytest.mark.slow
def test_a_worker_that_stays_silent_is_replaced_after_the_timeout(local_ray):
    with running(on_ray(many_steps(), 2, timeout=3.0)) as run:
        pid, other = run.executor.pids()
        run.until(lambda: run.done_by(pid) > 0, 30)
        with stopped(pid):
            run.until(lambda: run.count_events("worker-silent") == 1, 30)
            silent = time.monotonic()
            run.until(lambda: run.count_events("worker-lost") == 1, 30)
            assert time.monotonic() - silent > 2.5, "not before"
            run.until(lambda: run.count_events("worker-joined") == 1, 60)
        (new,) = set(run.executor.pids()) - {pid, other}
        run.until(lambda: run.done_by(new) > 0, 30)
        run.check()


@pytest.mark.slow
def test_the_only_worker_stopped_is_replaced_too(local_ray):
    with running(on_ray(many_steps(), 1, timeout=3.0)) as run:
        (pid,) = run.executor.pids()
        run.step(5)
        with stopped(pid):
            run.step(5)
        assert (
            run.count_events("worker-silent")
            == run.count_events("worker-lost")
            == run.count_events("worker-joined")
            == 1
        )
        run.check()


@pytest.mark.slow
def test_tasks_that_kill_every_worker_end_the_run_and_are_named(local_ray):
    with running(on_ray(harmful("kill", 21), 2)) as run:
        with pytest.raises(TaskFailed, match=r"^tasks 21 to 21 at step 2: .* workers died .*shard_size$"):
            run.step(3)
        assert run.state.step == 2
        assert run.executor.health()["worker-lost"] >= 6


@pytest.mark.slow
def test_a_task_that_raises_ends_that_call_and_leaves_the_workers_fit_for_others(local_ray):
    with running(on_ray(harmful("raise", 3), 2)) as run:
        params, shards = run.state.params, make_shards(0, 8, 1)
        for _ in range(5):
            with pytest.raises(TaskFailed, match=r"^test task 3 at step 0: KeyError: 'no such task'"):
                list(run.executor.map(ShardRequest("score", "test", 0), params, shards))
        began, calls = time.monotonic(), 0
        while calls < 3 or run.executor.health()["workers"] < 2:  # the second worker may start later than all this
            assert len(list(run.executor.map(ShardRequest("score", "test", 0), params, make_shards(4, 8, 1)))) == 8
            assert time.monotonic() - began < 60
            calls += 1
        assert all(event.kind != "worker-lost" for event in run.executor.events())


@pytest.mark.slow
@pytest.mark.parametrize(("harm", "lost"), [("value", 0), ("file", 2)])
def test_a_worker_that_cannot_start_is_tried_again_only_where_that_may_help(local_ray, harm, lost):
    began = time.monotonic()
    with running(on_ray(harmful(harm), 1)) as run:
        reason = {"value": "ValueError: no such strokes", "file": "FileNotFoundError: .*not mounted yet"}[harm]
        with pytest.raises(WorkersLost, match=f"^a worker cannot start: {reason}"):
            run.step()
        assert sum(event.kind == "worker-lost" for event in run.executor.events()) == lost
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_workers_that_compile_for_longer_than_the_deadline_are_waited_for(local_ray):
    said: list[str] = []
    with running(on_ray(harmful("slow", 7), 1, deadline=12.0), say=said.append) as run:
        run.executor.compile(make_shards(0, 8, 1))
        assert run.executor.health()["workers"] == 1
        assert not run.executor.events()
    assert any("0 of at least 1 workers are ready, 1 are compiling" in line for line in said), said


MEMORY = """
import ray
from tests.faults import many_steps, on_ray, running
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
with running(on_ray(many_steps(), 1)) as run:
    try:
        run.step(1000)
    except Exception as error:
        print(type(error).__name__, [event.text for event in run.executor.events()])
ray.shutdown()
"""


@pytest.mark.slow
def test_workers_killed_for_want_of_memory_end_the_run_with_that_reason():
    env = os.environ | {"RAY_memory_usage_threshold": "0.0", "RAY_memory_monitor_refresh_ms": "500"}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", MEMORY], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1].startswith(("WorkersLost", "TaskFailed")), done.stderr
    assert "its node had no memory left" in done.stdout
