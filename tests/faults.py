"""Helpers of the fault tests: a run driven step by step, tasks that fail or kill, processes that are stopped."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cluster.executor import RayExecutor
from metatrain.algorithms.updates import update_of
from metatrain.runs.checkpoints import params_sha256
from metatrain.settings import Config, WorkerRange
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state, train
from metatrain.training.worker import Worker
from metatrain.types import Executor, WorkerEvent
from tasks.sources.strokes import Strokes
from tests.configurations import tiny

CPU = torch.device("cpu")


def on_ray(config: Config, workers: int | WorkerRange, **settings: Any) -> Config:
    return replace(config, executor=replace(config.executor, name="ray", workers=workers, **settings))


def many_steps(*overrides: str) -> Config:
    """Return a configuration with more steps than any test takes."""
    return tiny("outer.steps=100000", "outer.tasks_per_step=8", "engine.compile=off", *overrides)


class Run:
    """A run driven step by step, with its worker events so far."""

    def __init__(self, config: Config, executor: Executor) -> None:
        self.config, self.executor = config, executor
        self.state = initial_state(Worker(config, CPU).initial(), config.outer)
        self._steps = train(self.state, executor, config.outer, config.executor.shard_size, update_of(config.algorithm))
        self.events: list[WorkerEvent] = []

    def step(self, steps: int = 1) -> float:
        """Take so many steps; return seconds a step."""
        began = time.monotonic()
        for _ in range(steps):
            next(self._steps)
        self.events += self.executor.events()
        return (time.monotonic() - began) / steps

    def until(self, seen: Callable[[], bool], seconds: float) -> None:
        """Goes on until something has been seen."""
        end = time.monotonic() + seconds
        while not seen():
            assert time.monotonic() < end, f"not seen in {seconds} s, but {self.events}"
            self.step()
            time.sleep(0.1)  # `check` repeats every step

    def count_events(self, kind: str) -> int:
        """How many events of a kind there were."""
        return sum(event.kind == kind for event in self.events)

    def done_by(self, pid: int) -> int:
        """Tasks of a worker's that were counted."""
        return int(self.executor.report()["workers"].get(str(pid), 0))

    def check(self) -> None:
        """Every task was counted once, and the parameters are those that one process finds in as many steps."""
        steps = self.state.step
        assert sum(self.executor.report()["workers"].values()) == steps * self.config.outer.tasks_per_step
        alone = Run(self.config, InProcess(Worker(self.config, CPU)))
        alone.step(steps)
        assert params_sha256(self.state.params) == params_sha256(alone.state.params), f"other bits after {steps} steps"


@contextmanager
def running(config: Config, **options: Any) -> Iterator[Run]:
    """Yield a run on the Ray cluster of this process."""
    executor = RayExecutor(config, **options)
    try:
        yield Run(config, executor)
    finally:
        executor.close()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process (SIGSTOP) within the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


def is_worker() -> bool:
    """Tell whether this process is a Ray worker."""
    return b"ray::" in Path("/proc/self/cmdline").read_bytes()


@dataclass(frozen=True)
class Harmful(Strokes):
    """Strokes whose task `at` kills, raises or takes 18 s when sampled, or whose constructor raises in workers only.

    harm "wait": task `at` waits until the file `gate` is there, for two minutes at most.
    """

    harm: str = ""
    at: int = 0
    gate: str = ""

    def distribution(self, split: Any, episode: Any, seed: int) -> Any:
        if is_worker() and self.harm == "value":
            raise ValueError("no such strokes")
        if is_worker() and self.harm == "file":
            raise FileNotFoundError(2, "not mounted yet", "/strokes")
        return Sampled(super().distribution(split, episode, seed), self)


class Sampled:
    """The tasks of Strokes, one of them harmful."""

    def __init__(self, strokes: Any, harmful: Harmful) -> None:
        self.spec, self._strokes, self._harm, self._at = strokes.spec, strokes, harmful.harm, harmful.at
        self._gate = Path(harmful.gate)

    def episodes(self, indices: Any) -> Any:
        if self._at in indices and self._harm == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._at in indices and self._harm == "slow":
            time.sleep(18)
        if self._at in indices and self._harm == "wait":
            until = time.monotonic() + 120
            while not self._gate.exists() and time.monotonic() < until:
                time.sleep(0.05)
        if self._at in indices and self._harm == "raise":
            raise KeyError("no such task")
        return self._strokes.episodes(indices)


def harmful(harm: str, at: int = 0, *overrides: str) -> Config:
    return many_steps("tasks.name=tests.faults:Harmful", f"tasks.harm={harm}", f"tasks.at={at}", *overrides)
