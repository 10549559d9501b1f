"""Compute shards in the driver's own process: the executor that needs no Ray."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from metatrain.errors import StepAbandoned
from metatrain.signals import GRACE_S, stop_is_overdue
from metatrain.training.profiling import as_report
from metatrain.training.tree_sum import tree_sum
from metatrain.training.worker import Worker
from metatrain.types import STEPS_OF_TRAINING, MetaGradient, Params, Scores, Shard, ShardRequest, WorkerEvent


class InProcess:
    """Compute shards one after another; the tasks of the next one are sampled at the same time."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._tasks_done = 0
        self._sampler = ThreadPoolExecutor(1, "sampler")

    def map(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> Iterator[Scores]:
        params = self.worker.to_device(params)
        for shard, tasks in self._sampled(request, shards):
            yield self.worker.score_or_embed(request, params, shard, tasks)

    def sum(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> MetaGradient:
        params = self.worker.to_device(params)
        gradients = (
            self.worker.gradient(request, params, shard, tasks) for shard, tasks in self._sampled(request, shards)
        )
        if request.counts:
            self._tasks_done += sum(len(shard.indices) for shard in shards)
        return tree_sum(gradients, len(shards))  # type: ignore[no-any-return]

    def compile(self, shards: Sequence[Shard]) -> None:
        self.worker.compile(shards)

    def events(self) -> list[WorkerEvent]:
        return []

    def health(self) -> Mapping[str, float]:
        return {}

    def report(self) -> Mapping[str, Any]:
        usage = [self.worker.meter.usage()]
        return {"workers": {str(os.getpid()): self._tasks_done}, "retries": 0} | as_report(usage)

    def close(self) -> None:
        self._sampler.shutdown(cancel_futures=True)

    def _sampled(self, request: ShardRequest, shards: Sequence[Shard]) -> Iterator[tuple[Shard, Any]]:
        """Yield every shard with its tasks, sampled one shard ahead."""
        tasks = self.worker.tasks(request, shards[0])
        for shard, following in pairwise(shards):
            if stop_is_overdue() and request.kind in STEPS_OF_TRAINING:
                raise StepAbandoned(f"shards from {shard.number} on were not computed {GRACE_S:.0f} s after a signal")
            ahead = self._sampler.submit(self.worker.tasks, request, following)
            yield shard, tasks
            tasks = ahead.result()
        yield shards[-1], tasks
