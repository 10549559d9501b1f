"""Measure what a step costs on a local cluster of several Ray nodes, with workers that answer after a recorded time.

The nodes are processes of this machine (`ray.cluster_utils.Cluster`); the head's, where the driver is, has no workers.
A worker copies the parameters, sleeps for the recorded seconds of its tasks, and replies with the copy. Parts of the
driver's time come from `driver.py`; those of one call to one worker, of a vector of B bytes that its node

    has not yet:  submit + 2·latency + work(B) + pull + B/link        has:  submit + 2·latency + work(B)

and `ray.get` of a reply that is on the worker's node takes pull + B/link again.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import ray
import torch
from ray.cluster_utils import Cluster

from benchmarks import driver
from benchmarks.cost_model import non_negative_least_squares
from benchmarks.scale_model import Costs, Machines
from cluster.actor import BlockReply, BlockSum, CallId
from cluster.connection import max_inline_bytes
from cluster.executor import RayExecutor
from metatrain.settings import Config, OuterSettings
from metatrain.training.outer_loop import apply, initial_state
from metatrain.training.tree_sum import Block
from metatrain.training.worker import Worker
from metatrain.types import Params, Shard, ShardRequest

_STORE_BYTES = 500 * 2**20
_SHARDS = 8
_FLYING = (4, 32, 128, 512, 2048)
"""Calls in flight of up to 1,024 workers."""


class Line(NamedTuple):
    """seconds = fixed + slope · bytes."""

    fixed: float
    slope: float


@contextmanager
def local_nodes(count: int, per_node: int) -> Iterator[None]:
    """Keep a cluster of `count` nodes with `per_node` workers each, and join it."""
    folder = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
    # In a folder of its own, where its address is noted, nobody else joins it.
    with folder as place, patch.dict(os.environ, {"RAY_TMPDIR": place}):
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(count):
                nodes.add_node(num_cpus=per_node, object_store_memory=_STORE_BYTES)
            ray.init(address=nodes.address, log_to_driver=False, logging_level="WARNING")
            yield
        finally:
            ray.shutdown()
            nodes.shutdown()


@contextmanager
def open_sleepers(workers: int, seconds: Sequence[float]) -> Iterator[RayExecutor]:
    """Open the project's executor over workers that take `seconds`[i modulo their number] for task i."""
    with patch("cluster.worker_pool.ShardActor", _sleeper(list(seconds))):
        executor = RayExecutor(driver.config_with_workers(workers))
        try:
            executor.pids()
            yield executor
        finally:
            executor.close()


def record_tasks(config: Config, seconds: float, least: int = 3) -> list[float]:
    """Return the seconds that each of several tasks takes a worker in this process, for about so many seconds."""
    worker, request = Worker(config, torch.device("cpu")), ShardRequest("gradient", "train", 0)
    params, found = worker.initial(), []
    until = time.perf_counter() + seconds
    while len(found) <= least or time.perf_counter() < until:
        shard, began = Shard(0, (len(found),)), time.perf_counter()
        worker.compute(request, params, shard, worker.tasks(request, shard))
        found.append(time.perf_counter() - began)
    return found[1:]


def measure_costs(executor: RayExecutor, sizes: Sequence[float], repeats: int) -> Costs:
    """Return the costs, by lines through the medians at `sizes`, in million parameters; some must be above inline."""
    actors = [handle.actor for handle in executor._pool.ready()]
    rows = {4e6 * millions: _parts(actors, millions, repeats) for millions in sizes}
    large = [size for size in rows if size >= max_inline_bytes()]
    small = [size for size in rows if size < max_inline_bytes()]
    call = median(rows[size]["submit"] for size in large)
    prepare, reply, finish = (_line({size: row[part] for size, row in rows.items()}) for part in _BY_SIZE)
    fixed = _echo(actors[0], 10, repeats)["again"]
    echoes = {size: _echo(actors[0], round(size / 4), repeats) for size in large}
    pulls = [(size, seconds) for size, row in echoes.items() for seconds in (row["first"] - row["again"], row["get"])]
    pull = _fit([size for size, _ in pulls], [max(seconds, 1e-5) for _, seconds in pulls])
    work = _line({size: max(row["again"] - fixed, 1e-6) for size, row in echoes.items()})
    turn = _fit(_FLYING, [(wait + hand_out) / 1e3 for _, wait, hand_out in driver.in_flight(repeats, _FLYING)])
    link = 1 / pull.slope if pull.slope else float("inf")
    return Costs(
        prepare=prepare.fixed,
        prepare_byte=prepare.slope,
        call=call,
        call_byte=median([max(0.0, rows[size]["submit"] - call) / size for size in small] or [0.0]),
        turn=turn.fixed,
        turn_flying=turn.slope,
        reply=reply.fixed,
        reply_byte=reply.slope,
        finish=finish.fixed,
        finish_byte=finish.slope,
        work=work.fixed,
        work_byte=work.slope,
        latency=max(0.0, fixed - call) / 2,
        pull=pull.fixed,
        driver_link=link,
        node_link=link,
    )


def measure_step(executor: RayExecutor, params: Params, tasks: int, steps: int) -> float:
    """Return the median seconds of a step of `tasks` shards of one task, the optimiser included."""
    settings = OuterSettings()
    state, took = initial_state(params, settings), []
    for step in range(steps + 1):
        shards = [Shard(number, (step * tasks + number,)) for number in range(tasks)]
        began = time.perf_counter()
        gradient = executor.sum(ShardRequest("gradient", "train", step), state.params, shards)
        assert all(bool(torch.isfinite(grad).all()) for grad in gradient.grads.values())
        apply(state, gradient, settings)
        took.append(time.perf_counter() - began)
    return median(took[1:])


def machines_of(nodes: int, per_node: int) -> Machines:
    """Return the local cluster as the simulation sees it: no stragglers, no faults."""
    return Machines(nodes * per_node, per_node, inline_bytes=max_inline_bytes())


_BY_SIZE: tuple[str, ...] = ("prepare", "reply", "finish")


def _parts(actors: list[Any], millions: float, repeats: int) -> dict[str, float]:
    """Return the median seconds of the driver's parts, those of calls and replies for one each."""
    settings = OuterSettings()
    bench = driver.Bench(actors, initial_state(driver.parameters(millions), settings), settings)
    driver.step(bench, _SHARDS, driver.Stopwatch())
    watch = driver.Stopwatch()
    for _ in range(repeats):
        driver.step(bench, _SHARDS, watch)
        watch.lap()
    seconds = {part: watch.median_ms(part) / 1e3 for part in (*driver.PER_STEP, *driver.PER_SHARD)}
    return {
        "prepare": seconds["flatten"] + seconds["put"],
        "submit": seconds["submit"] / _SHARDS,
        "reply": (seconds["get"] + seconds["add"]) / _SHARDS,
        "finish": seconds["unpack"] + seconds["finite"] + seconds["optimise"],
    }


def _echo(actor: Any, length: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of a call whose vector is new to the node, of another one, and of fetching a reply."""
    vector = np.ones(length, dtype=np.float32)
    found: dict[str, list[float]] = {"first": [], "again": [], "get": []}
    for _ in range(repeats):
        sent = vector if vector.nbytes < max_inline_bytes() else ray.put(vector)
        for which in ("first", "again"):
            reference, seconds = _timed(lambda vector=sent: _answered(actor, vector))
            found[which].append(seconds)
        found["get"].append(_timed(lambda reference=reference: ray.get(reference))[1])
    return {which: median(values) for which, values in found.items()}


def _answered(actor: Any, vector: Any) -> Any:
    """Call the worker without a task, and wait until the reply is in its node's store."""
    reference = actor.compute.remote(CallId(0, Block(0, 0), 1), driver.JOB, vector, [])
    ray.wait([reference], timeout=60, fetch_local=False)
    return reference


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - began


def _line(points: dict[float, float]) -> Line:
    return _fit(list(points), list(points.values()))


def _fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """Return the non-negative line of least relative errors."""
    matrix = np.array([[1.0, each] for each in x])
    return Line(*(float(value) for value in non_negative_least_squares(matrix / np.array(y)[:, None], np.ones(len(y)))))


def _sleeper(seconds: list[float]) -> type:
    """Return an actor class, defined here so that Ray sends its code and `seconds` with it."""

    class Sleeper(driver.EchoActor):
        def compute(
            self, call: CallId, request: ShardRequest, vector: np.ndarray[Any, Any], shards: Sequence[Shard]
        ) -> BlockReply:
            began = time.perf_counter()
            copy = np.array(vector)
            time.sleep(sum(seconds[index % len(seconds)] for shard in shards for index in shard.indices))
            metrics = {name: np.array(len(shards), dtype=np.float32) for name in ("loss", "accuracy")}
            return BlockReply(call, os.getpid(), {}, time.perf_counter() - began, BlockSum(copy, metrics))

    return Sleeper
