"""Measure the driver's time per step without computation: milliseconds by part, number of parameters and shards.

Everything is real: a local Ray with two actors that reply at once with vectors of the right size, and the project's
own packing, adding, checking, optimising and recording. Replies are in the object store before the clock starts, so
no worker time is included. `whole` is one `RayExecutor.sum` over the same actors, workers included.

    per step    flatten, put, unpack, finite, optimise    per shard    submit, wait, get, add
"""

import argparse
import io
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import ray
import torch

from benchmarks import cost_model, results
from cluster.actor import ActorInfo, BlockReply, BlockSum, CallId, unpack_gradient
from cluster.dispatcher import Dispatcher, DispatchState
from cluster.executor import RayExecutor, broadcast
from cluster.worker_pool import IN_FLIGHT, WorkerHandle
from metatrain.config.load import read_config
from metatrain.settings import Config, OuterSettings
from metatrain.tracking.console import ProgressRecorder
from metatrain.tracking.jsonl import JsonlRecorder
from metatrain.training.devices import keep_freed_memory
from metatrain.training.outer_loop import TrainState, apply, initial_state
from metatrain.training.profiling import Meter, Usage
from metatrain.training.tree_sum import Block, TreeSum, flatten
from metatrain.types import Params, Recorder, Shard, ShardRequest

PER_STEP = ("flatten", "put", "unpack", "finite", "optimise")
PER_SHARD = ("submit", "wait", "get", "add")
_ACTORS = 2
_TENSORS = 20
_VECTORS = 20
"""Maximum number of parameter vectors in memory: the driver's, Adam's, the sum's, the object store's."""
JOB = ShardRequest("gradient", "train", 0)
_METRICS = {"loss": 0.5, "accuracy": 0.8, "gradient_norm": 1.0, "lr": 1e-3}


class EchoActor:
    """Replace `ShardActor`: reply at once with the sum of a vector of ones per shard."""

    def __init__(self, config: Config, secrets: Mapping[str, str]) -> None:
        self._answer = np.empty(0, dtype=np.float32)

    def info(self) -> ActorInfo:
        return ActorInfo(os.getpid(), "node", "here")

    def compute(self, call: CallId, request: ShardRequest, vector: np.ndarray, shards: Sequence[Shard]) -> BlockReply:
        if len(self._answer) != len(vector):
            self._answer = np.ones(len(vector), dtype=np.float32)
        metrics = {name: np.array(1, dtype=np.float32) for name in ("loss", "accuracy")}
        summed = TreeSum(len(shards))
        for number in range(len(shards)):
            summed.add(number, BlockSum(self._answer, metrics))
        return BlockReply(call, os.getpid(), {}, 0.0, summed.total())

    def usage(self) -> Usage:
        return Usage(os.getpid(), {}, 0.0)


class Stopwatch:
    """Add up seconds by part within a lap; report medians over laps."""

    def __init__(self) -> None:
        self._lap: dict[str, float] = {}
        self._laps: list[dict[str, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block towards `name`."""
        began = time.perf_counter()
        yield
        self._lap[name] = self._lap.get(name, 0.0) + time.perf_counter() - began

    def lap(self) -> None:
        """End a repetition."""
        self._laps.append(self._lap)
        self._lap = {}

    def median_ms(self, name: str) -> float:
        """Return the median in ms."""
        return 1e3 * median(lap[name] for lap in self._laps)


class Bench(NamedTuple):
    """Objects for the measurement at one number of parameters."""

    actors: list[Any]
    state: TrainState
    settings: OuterSettings


def main(argv: list[str]) -> None:
    """Measure, fit the model, and write the parts "driver", "driver-recording" and "driver-model"."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    sizes = [millions for millions in arguments.millions if fits(millions)]
    left_out = sorted(set(arguments.millions) - set(sizes))
    ray.init("local", num_cpus=max(_ACTORS, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
    try:
        with patch("cluster.worker_pool.ShardActor", EchoActor):
            executor = RayExecutor(config_with_workers(_ACTORS))
            executor.pids()
            rows = [row for millions in sizes for row in measure(executor, millions, arguments)]
            executor.close()
        answers = in_flight(arguments.repeats)
    finally:
        ray.shutdown()
    notes = _notes(arguments, left_out)
    table = [[value if i < 2 else round(value, 3) for i, value in enumerate(row)] for row in rows]
    results.write("driver", "The driver's part of a step", COLUMNS, table, notes, {"in_flight": answers})
    recording = record(arguments.repeats * 20)
    results.write("driver-recording", "Recording a step", ["recorder", "call", "ms"], recording, _RECORDING, {})
    wait = COLUMNS.index("wait ms")
    cost_model.write([[*row[:2], row[-2], row[wait]] for row in rows], answers)


def config_with_workers(workers: int) -> Config:
    """Return a configuration with `workers` workers."""
    return read_config(_CONFIG | {"executor": {"name": "ray", "workers": workers, "shard_size": 1}})


_CONFIG: dict[str, Any] = {
    "tasks": {"name": "strokes"},
    "model": {"name": "conv4"},
    "algorithm": {"name": "maml"},
    "tracking": {"uri": None},
}
COLUMNS = ["million parameters", "shards", *(f"{part} ms" for part in (*PER_STEP, *PER_SHARD)), "sum ms", "whole ms"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks driver", description="Measure the driver's time per step.")
    parser.add_argument("--millions", type=float, nargs="+", default=[0.1, 1.0, 10.0, 50.0])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--repeats", type=int, default=10)
    return parser


def fits(millions: float) -> bool:
    """Return whether half of the free memory holds all vectors."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _VECTORS * 4e6 * millions <= free / 2


def parameters(millions: float) -> Params:
    """Return `millions` million zeros in as many tensors as a small convolutional network has."""
    each = round(1e6 * millions / _TENSORS)
    return {f"model.{number:02}": torch.zeros(each) for number in range(_TENSORS)}


def measure(executor: RayExecutor, millions: float, arguments: argparse.Namespace) -> list[list[float]]:
    """Return a row of medians in ms per number of shards."""
    settings = OuterSettings()
    bench = Bench(
        [handle.actor for handle in executor._pool.ready()], initial_state(parameters(millions), settings), settings
    )
    rows = []
    for shards in arguments.shards:
        # Large steps take seconds and vary little: few repeats are enough.
        repeats = max(3, min(arguments.repeats, round(400 / (millions * shards))))
        watch = Stopwatch()
        step(bench, shards, Stopwatch())
        for _ in range(repeats):
            step(bench, shards, watch)
            with watch.part("whole"):
                executor.sum(JOB, bench.state.params, shards_of_one(shards))
            watch.lap()
        parts = [watch.median_ms(part) for part in (*PER_STEP, *PER_SHARD)]
        rows.append([millions, shards, *parts, sum(parts), watch.median_ms("whole")])
    return rows


def step(bench: Bench, shards: int, watch: Stopwatch) -> None:
    """Run one step as the executor and the outer loop do, timing each part.

    As many calls are in flight as the executor allows; all have ended before the next part begins.
    """
    params = bench.state.params
    with watch.part("flatten"):
        flat = flatten(params)
    with watch.part("put"):
        vector = broadcast(flat)
    summed, todo = TreeSum(shards), deque(shards_of_one(shards))
    while todo:
        flying: dict[Any, Shard] = {}
        while todo and len(flying) < _ACTORS * IN_FLIGHT:
            shard = todo.popleft()
            with watch.part("submit"):
                call = CallId(0, Block(0, shard.number), 1)
                reference = bench.actors[shard.number % _ACTORS].compute.remote(call, JOB, vector, [shard])
            flying[reference] = shard
        ray.wait(list(flying), num_returns=len(flying))
        collect(flying, summed, watch)
    with watch.part("unpack"):
        gradient = unpack_gradient(summed.total(), params, shards)
    with watch.part("finite"):
        assert all(bool(torch.isfinite(grad).all()) for grad in gradient.grads.values())
    with watch.part("optimise"):
        apply(bench.state, gradient, bench.settings)


def collect(flying: dict[Any, Shard], summed: TreeSum, watch: Stopwatch) -> None:
    """Receive every reply in flight as the executor does."""
    while flying:
        with watch.part("wait"):
            ready, _ = ray.wait(list(flying), timeout=5.0)
        for reference in ready:
            shard = flying.pop(reference)
            with watch.part("get"):
                answer = ray.get(reference)
            with watch.part("add"):
                summed.add(shard.number, answer.total)


def in_flight(repeats: int, counts: Sequence[int] = (4, 32, 128, 512)) -> list[list[float]]:
    """Return rows [replies in flight, ms to wait for one, ms to assign one]; both grow with the workers.

    Replies are ready; assignment is the executor's own, over stand-ins for the actors.
    """
    rows = []
    for flying in counts:
        references = [ray.put(0) for _ in range(flying)]
        watch = Stopwatch()
        for _ in range(5 * repeats):
            with watch.part("wait"):
                ray.wait(list(references), timeout=5.0)
            dispatcher = _dispatcher_with_one_free_worker(flying // IN_FLIGHT)
            with watch.part("hand out"):
                dispatcher._assign()
            watch.lap()
        rows.append([flying, watch.median_ms("wait"), watch.median_ms("hand out")])
    return rows


def _dispatcher_with_one_free_worker(workers: int) -> Dispatcher:
    """Return a dispatcher with stand-in workers, all but one of which have the maximum of calls in flight."""
    stand_in = SimpleNamespace(compute=SimpleNamespace(remote=lambda *_: object()))
    handles = [
        WorkerHandle(n, stand_in, None, ActorInfo(n, "node", "host"), calls=IN_FLIGHT - (n == 0))
        for n in range(workers)
    ]
    pool = SimpleNamespace(ready=lambda: handles, handles=dict(enumerate(handles)))
    state = DispatchState(pool, SimpleNamespace(), Meter())  # type: ignore[arg-type]
    return Dispatcher(state, JOB, None, shards_of_one(workers), 1)


def record(repeats: int) -> list[list[Any]]:
    """Return [recorder, call, median ms] for a step with five values; MLflow's batch holds three seconds of steps."""
    rows: list[list[Any]] = []
    named = {f"train/{name}": value for name, value in _METRICS.items()} | {"time/tasks_per_second": 50.0}
    with tempfile.TemporaryDirectory() as scratch:
        chosen: dict[str, Recorder] = {
            "JsonLines": JsonlRecorder(Path(scratch) / "metrics.jsonl"),
            "Progress": ProgressRecorder(io.StringIO()),
        }
        for name, recorder in chosen.items():
            recorder.start(0, repeats)
            rows.append([name, "record", _time_calls(lambda n, r=recorder: r.record(n + 1, named), repeats)])
            recorder.close("finished")
        from metatrain.tracking.mlflow_recorder import MLflowRecorder  # imports mlflow: seconds

        mlflow = MLflowRecorder(f"sqlite:///{scratch}/mlflow.db", "benchmark", "one", {}, {}, send_seconds=1e9)
        mlflow.start(0, repeats)
        rows.append(["MLflow on SQLite", "record", _time_calls(lambda n: mlflow.record(n + 1, named), repeats)])
        mlflow.flush()
        for steps in (10, 100):
            sent: list[float] = []
            for batch in range(5):
                first = repeats + 1000 * steps + batch * steps
                _time_calls(lambda n, f=first: mlflow.record(f + n, named), steps)
                sent.append(_time_calls(lambda _: mlflow.flush(), 1))
            rows.append(["MLflow on SQLite", f"flush of {steps} steps", median(sent)])
        mlflow.close("finished")
    return rows


_RECORDING = [
    "Medians. A step is recorded with five values. MLflow's record buffers them; every three seconds, and before a "
    "checkpoint, flush sends them. Progress writes a line every ten seconds, since there is no terminal.",
]


def _time_calls(call: Callable[[int], object], repeats: int) -> float:
    """Return the median ms of call(0), call(1), …"""
    watch = Stopwatch()
    for number in range(repeats):
        with watch.part("call"):
            call(number)
        watch.lap()
    return round(watch.median_ms("call"), 4)


def shards_of_one(count: int) -> list[Shard]:
    """Return `count` shards of one task each."""
    return [Shard(number, (number,)) for number in range(count)]


def _notes(arguments: argparse.Namespace, left_out: list[float]) -> list[str]:
    absent = ", ".join(f"{millions:g}" for millions in left_out)
    notes = [
        f"Medians of {arguments.repeats} repetitions (3 of the largest), {_TENSORS} tensors of equal size, Adam, one "
        f"thread; {_ACTORS} actors on this machine. submit, wait, get and add are totals over all shards; "
        "'sum' is the sum of the parts.",
        "whole: one RayExecutor.sum, without finite and optimise, and with the actors' own copying.",
    ]
    return [*notes, *([f"Not measured for lack of memory, in million parameters: {absent}."] if absent else [])]
