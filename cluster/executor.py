"""The executor on Ray: shards handed to actors as they come free, answers added in the order of the tree.

A step broadcasts one flat vector. Each actor has at most `_IN_FLIGHT` shards at a time, so that it never waits for
the driver and a lost one loses little. An actor that dies is replaced, and what it had in flight is done again.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.actor import Answer, ShardActor, Vector, unpack_gradient
from cluster.connection import within_messages
from metatrain.engine import NotCompilable
from metatrain.reduction import TreeSum, flatten
from metatrain.settings import Config
from metatrain.types import Job, MetaGradient, Params, Scores, Shard, TaskFailed, WorkersLost
from metatrain.usage import Meter, Usage, as_report

_IN_FLIGHT = 2
_ANSWER_S = 10.0
"""An actor that says what it spent does so at once, or is not waited for."""
_PATIENCE_S = 600.0
"""Without any answer or any new worker for so long, the run gives up."""


class RayExecutor:
    """`config.executor.workers` actors, inside `placement_group` where one is given (bundle 0 is the driver's)."""

    def __init__(self, config: Config, placement_group: PlacementGroup | None = None) -> None:
        self._config = ray.put(config)
        self._options = _actor_options(config, placement_group)
        self._tasks_done: Counter[int] = Counter()
        self._retries = 0
        self._meter = Meter()
        self._actors: list[Any] = [self._spawn() for _ in range(config.executor.workers)]

    def map(self, job: Job, params: Params, shards: Sequence[Shard]) -> Iterator[Scores]:
        waiting: dict[int, Answer] = {}
        following = 0
        for shard, answer in self._answers(job, params, shards):
            waiting[shard.number] = answer
            while following in waiting:
                values = waiting.pop(following).found.values
                yield Scores({name: torch.from_numpy(array.copy()) for name, array in values.items()})
                following += 1

    def sum(self, job: Job, params: Params, shards: Sequence[Shard]) -> MetaGradient:
        summed = TreeSum(len(shards))
        for shard, answer in self._answers(job, params, shards):
            with self._meter.part("add"):
                summed.add(shard.number, answer.found)
            self._tasks_done[answer.pid] += len(shard.indices)
        return unpack_gradient(summed.total(), params, sum(len(shard.indices) for shard in shards))

    def compile(self, shards: Sequence[Shard]) -> None:
        for compiling in [actor.compile.remote(shards) for actor in self._actors]:
            try:
                ray.get(compiling)
            except RayActorError as error:  # it is replaced, and compiles, when it is next spoken to
                _require_started(error)
            except RayTaskError as error:
                raise _raised(error) from error

    def report(self) -> Mapping[str, Any]:
        workers = {str(pid): done for pid, done in sorted(self._tasks_done.items())}
        return {"workers": workers, "retries": self._retries} | as_report([self._meter.usage(), *self._usages()])

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def pids(self) -> list[int]:
        """The processes of the workers, once they are all ready."""
        return list(ray.get([actor.pid.remote() for actor in self._actors]))

    def _usages(self) -> Iterator[Usage]:
        """Of the workers that are there now; what a lost one spent is lost with it."""
        for actor in self._actors:
            with suppress(RayError):
                yield ray.get(actor.usage.remote(), timeout=_ANSWER_S)

    def _spawn(self) -> Any:
        return ray.remote(ShardActor).options(**self._options).remote(self._config)

    def _answers(self, job: Job, params: Params, shards: Sequence[Shard]) -> Iterator[tuple[Shard, Answer]]:
        """Every shard's answer once, in order of arrival."""
        with self._meter.part("broadcast"):
            vector = broadcast(flatten(params) if params else np.empty(0, dtype=np.float32))
        todo = deque(shards)
        flying: dict[Any, tuple[int, Shard]] = {}
        heard = time.monotonic()
        while todo or flying:
            self._hand_out(job, vector, todo, flying)
            with self._meter.part("wait"):
                ready, _ = ray.wait(list(flying), timeout=5.0)
            for reference in ready:
                seat, shard = flying.pop(reference)
                try:
                    answer = ray.get(reference)
                except RayActorError as error:
                    _require_started(error)
                    self._replace(seat, shard, todo, flying)
                    continue
                except RayTaskError as error:  # the actor lives: it is the computation that fails, and would again
                    raise _raised(error) from error
                heard = time.monotonic()
                yield shard, answer
            if time.monotonic() - heard > _PATIENCE_S:
                raise WorkersLost(f"no worker answered for {_PATIENCE_S:.0f} s: see `ray status` for what is missing")

    def _hand_out(self, job: Job, vector: Any, todo: deque[Shard], flying: dict[Any, tuple[int, Shard]]) -> None:
        """Fills every actor's share of work in flight, the idlest first."""
        load = Counter(seat for seat, _ in flying.values())
        while todo:
            seat = min(range(len(self._actors)), key=lambda s: (load[s], s))
            if load[seat] >= _IN_FLIGHT:
                return
            shard = todo.popleft()
            flying[self._actors[seat].compute.remote(job, vector, shard)] = (seat, shard)
            load[seat] += 1

    def _replace(self, seat: int, shard: Shard, todo: deque[Shard], flying: dict[Any, tuple[int, Shard]]) -> None:
        """A new actor in `seat`; all that the lost one had in flight goes back to the front of the queue."""
        lost = [reference for reference, (sat, _) in flying.items() if sat == seat]
        again = [shard] + [flying.pop(reference)[1] for reference in lost]
        self._retries += len(again)
        todo.extendleft(reversed(again))
        self._actors[seat] = self._spawn()


def broadcast(vector: Vector) -> Any:
    """What is handed to every call: a small vector as it is, within the message, a large one put once for all."""
    return vector if vector.nbytes < within_messages() else ray.put(vector)


def _require_started(error: RayActorError) -> None:
    """WorkersLost where the actor could not even be made, so that another would fail too."""
    if error.actor_init_failed:
        raise WorkersLost(f"a worker cannot start: {_reason(error)}") from error


def _reason(error: RayActorError) -> str:
    """The last line of what went wrong in the actor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _raised(error: RayTaskError) -> Exception:
    """What the worker raised, without the traceback that Ray's own message is."""
    cause = error.cause
    if isinstance(cause, NotCompilable):
        return NotCompilable(str(cause))
    return TaskFailed(
        str(cause) if isinstance(cause, TaskFailed) else " ".join(f"{type(cause).__name__}: {cause}".split())
    )


def _actor_options(config: Config, placement_group: PlacementGroup | None) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": config.executor.gpus_per_worker}
    if config.executor.gpus_per_worker:
        # One thread samples while the other waits for the GPU. On a CPU they would contend for the one core: the work
        # of a step took a tenth longer, for half the idling.
        options["max_concurrency"] = _IN_FLIGHT
    if placement_group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placement_group)
    return options
