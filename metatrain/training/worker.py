"""Compute shards: sample their tasks, take meta-gradients, score learners.

One worker is built per process, in the driver as in a Ray actor. It keeps no state between shards: what it returns is
a function of the configuration, the parameters and the shard.
"""

import dataclasses
import operator
from collections.abc import Iterator, Sequence
from functools import cached_property, partial, reduce
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metatrain.algorithms.base import Algorithm
from metatrain.algorithms.baselines import BASELINES
from metatrain.engine import Engine, checkpoint_blocks, resolve_compile, resolve_vectorize
from metatrain.evaluation.evaluate import in_order, score_tasks
from metatrain.evaluation.transduction import is_transductive
from metatrain.models import Model, build_model
from metatrain.models.dropout import NO_NOISE
from metatrain.settings import Config, EngineSettings
from metatrain.training.collected import Call, Collected, acting_params, without_old
from metatrain.training.devices import driver_device, keep_freed_memory
from metatrain.training.embedding import embed_examples, pool_of, reference_examples
from metatrain.training.failures import explain_failure
from metatrain.training.initial import Initial
from metatrain.training.profiling import Meter
from metatrain.training.splits import open_split
from metatrain.training.tree_sum import aligned, in_name_order, to_cpu
from metatrain.types import Context, MetaGradient, Params, Scores, Shard, ShardRequest
from metatrain.validation import require
from tasks.few_shot import ClassPool, EmptySplit, locate_examples
from tasks.ragged import TaskBatch, sample_batches
from tasks.random import random_words, stream
from tasks.types import SPLITS, Split, TaskDistribution, TaskSpec

_METHODS = {
    "gradient": "meta_gradient",
    "statistics": "statistics",
    "fisher": "fisher_product",
    "surrogate": "surrogate",
}
"""The method of an algorithm that computes each kind of request whose result is a sum over tasks."""


class Worker:
    """Compute the shards of one run on one device. `config` is the configuration with `engine` resolved."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.meter = Meter()
        self.given: Initial | None = None
        self._collected = Collected(self.meter)
        self._pools: dict[Split, ClassPool] = {}
        self._distributions: dict[Split, TaskDistribution[Any]] = {split: open_split(config, split) for split in SPLITS}
        trained_for = self._distributions["train"].spec
        self.model: Model = self._build_model(trained_for)
        self.algorithm: Algorithm = config.algorithm
        self.evaluated: Algorithm = with_inner_steps(self.algorithm, config.evaluation.inner_steps)
        self.engine = self._resolve_engine()
        self.config = dataclasses.replace(config, engine=_without_auto(config.engine, self.engine))
        for distribution in self._distributions.values():
            self.model.for_tasks(distribution.spec, self.initial())
        torch.set_num_threads(config.engine.threads)
        keep_freed_memory()

    def _resolve_engine(self) -> Engine:
        """Return the engine, with `auto` decided for the device that shards are computed on.

        ValueError: a precision that this device lacks.
        """
        config, settings = self.config, self.config.engine
        # The driver's worker may be on the CPU while those of the executor have GPUs.
        device = torch.device("cuda") if config.executor.gpus_per_worker > 0 else self.device
        vectorize = resolve_vectorize(settings.vectorize, self.convolves, device)
        steps = config.outer.steps * config.outer.tasks_per_step * getattr(self.algorithm, "inner_steps", 1)
        steps //= len(self._phases) or 1
        builtin = not config.names.of_user_code
        adapts = hasattr(self.algorithm, "inner")
        many = any(distribution.spec.ragged for distribution in self._distributions.values())
        each = "engine.compile: on compiles for each size of a task, and these tasks have many: set engine.compile=off"
        require(not (many and settings.compile == "on"), each)
        eager = many or settings.activation_checkpointing == "on"
        chosen = "off" if eager else resolve_compile(settings.compile, adapts, builtin, steps, device)
        precise = (
            "engine.precision: tf32 needs a GPU and the workers have none: set executor.gpus_per_worker, or use float32"
        )
        require(settings.precision != "tf32" or device.type == "cuda", precise)
        return Engine(vectorize, chosen == "on", settings.chunk, settings.precision)

    def distribution(self, split: Split, queries: int | None = None) -> TaskDistribution[Any]:
        """Return the tasks of `split`, if asked with another number of queries. ValueError: more than there are."""
        return self._distributions[split] if queries is None else open_split(self.config, split, queries)

    @property
    def _phases(self) -> list[int]:
        """Return the outer steps of this run from which on another computation is done, each to be compiled."""
        return [step for step in getattr(self.algorithm, "phases", (0,)) if step < self.config.outer.steps]

    @property
    def samples_training_tasks(self) -> bool:
        """Return False for an evaluation on data without classes for training."""
        return not isinstance(self._distributions["train"], EmptySplit)

    @cached_property
    def convolves(self) -> bool:
        """Return True if the model has convolutions, which decides how it is vectorised."""
        return any(isinstance(m, torch.nn.modules.conv._ConvNd) for m in self.model.body.modules())

    @cached_property
    def _untrained(self) -> Model:
        """Return the model of the from-scratch baseline: rebuilt if test tasks have more classes than training ones."""
        trained, tested = (self._distributions[split].spec for split in ("train", "test"))
        if tested.ways is None or trained.ways is None or tested.ways <= trained.ways:
            return self.model
        return self._build_model(tested)

    def _build_model(self, spec: TaskSpec) -> Model:
        """Return the network for tasks of `spec`, on this device. ValueError: it has no blocks to checkpoint."""
        config = self.config
        model = build_model(config.model, spec, config.seed).to(self.device)
        if config.engine.activation_checkpointing == "on":
            checkpoint_blocks(model.body, config.names.model)
        return model

    def initial(self) -> Params:
        """Return the meta-parameters of step 0, on the CPU; those that the driver's worker was `given` replace others.

        Workers of an executor are given none: they use the names and shapes alone.
        """
        params = to_cpu(self.algorithm.init(self.model, self._distributions["train"].spec, self.config.seed))
        given = {} if self.given is None else self.given.params
        fits = {name: given[name] for name, p in params.items() if name in given and given[name].shape == p.shape}
        return params | fits  # type: ignore[no-any-return]

    def tasks(self, request: ShardRequest, shard: Shard) -> Any:
        """Return the tasks of a shard in batches of one size, on this worker's device; to embed, its examples.

        May run while another shard is computed.
        """
        with explain_failure(request, shard), self.meter.part("sample"):
            if request.kind == "embed":
                pool = self.pool(request.split)
                return self.to_device(pool.examples(*locate_examples(pool, shard.indices)))
            batches = sample_batches(self._distributions[request.split], shard.indices)
            return [batch._replace(tasks=self.to_device(batch.tasks)) for batch in batches]

    def task(self, request: ShardRequest, index: int) -> tuple[Any, TaskSpec]:
        """Return one task of a split without a batch dimension, on this worker's device, and its spec.

        Raises TaskFailed when the code of the tasks raises.
        """
        (batch,) = self.tasks(request, Shard(0, (index,)))
        return tree_map(lambda leaf: leaf[0], batch.tasks), batch.spec

    def gradient(self, request: ShardRequest, params: Params, shard: Shard, tasks: Any = None) -> MetaGradient:
        """Return the sum of the meta-gradients of a shard's tasks, on the CPU, at `params` on this worker's device.

        Of a request for statistics it is the sum of what the algorithm keeps of training tasks, in the same form.
        Raises TaskFailed when the code of the tasks, model or algorithm raises.
        """
        tasks = self.tasks(request, shard) if tasks is None else tasks
        params = in_name_order(params)
        with explain_failure(request, shard):
            noise = self._silence(shard) if request.kind == "statistics" else self._noise(shard)
            compute, found = getattr(self.algorithm, _METHODS[request.kind]), []
            for number, (batch, context) in enumerate(self._with_contexts(request, tasks, noise)):
                model = self.model.for_tasks(batch.spec, params)
                call = Call(request.step, (shard.indices, number), acting_params(params), context)
                given = self._collected.tasks(self.algorithm, model, call, batch.tasks, self.engine)
                with self.meter.part("adapt"):
                    found.append(compute(model, without_old(params), given, context, self.engine))
            return to_cpu(reduce(partial(tree_map, operator.add), found))  # type: ignore[no-any-return]

    def score(self, request: ShardRequest, params: Params, shard: Shard, tasks: Any = None) -> Scores:
        """Return the scores of a shard's tasks, of the run's learner or a baseline, without dropout or other noise."""
        tasks = self.tasks(request, shard) if tasks is None else tasks
        params = in_name_order(params)
        with explain_failure(request, shard), self.meter.part("score"):
            found = []
            for batch, context in self._with_contexts(request, tasks, self._silence(shard)):
                algorithm, model = self._learner(request, params, batch.spec)
                found.append(score_tasks(algorithm, model, params, batch.tasks, context, self.engine))
            return to_cpu(in_order(found, [batch.places for batch in tasks]))  # type: ignore[no-any-return]

    def _with_contexts(
        self, request: ShardRequest, batches: Sequence[TaskBatch], noise: Tensor
    ) -> Iterator[tuple[TaskBatch, Context]]:
        """Yield each batch with the step, and its part of the keys of all tasks."""
        step = torch.tensor(request.step, device=self.device)
        for batch in batches:
            yield batch, Context(step, noise if len(batches) == 1 else noise[list(batch.places)])

    def embed(self, request: ShardRequest, params: Params, shard: Shard, x: Any = None) -> Scores:
        """Return the features of a shard's examples, which depend on no other example of the shard."""
        x = self.tasks(request, shard) if x is None else x
        with explain_failure(request, shard), self.meter.part("embed"):
            return Scores({"features": embed_examples(self.model, params, x, self._reference)})

    @cached_property
    def _reference(self) -> Tensor | None:
        found = reference_examples(self.model, self.pool("train"))
        return None if found is None else self.to_device(found)

    def pool(self, split: Split) -> ClassPool:
        """Return the classes of examples of a split. ValueError: its tasks are drawn from none."""
        if split not in self._pools:
            self._pools[split] = pool_of(self.config, split)
        return self._pools[split]

    def score_or_embed(self, request: ShardRequest, params: Params, shard: Shard, tasks: Any = None) -> Scores:
        """Return what a request that is not for gradients asks for."""
        compute = self.embed if request.kind == "embed" else self.score
        return compute(request, params, shard, tasks)

    def _learner(self, request: ShardRequest, params: Params, spec: TaskSpec) -> tuple[Algorithm, Model]:
        """Return the algorithm and the network that `request` scores on tasks of `spec`."""
        model = self._untrained if request.learner == "from_scratch" else self.model
        model = model.for_tasks(spec, params)
        if request.normalization is not None:
            model = model.with_normalization(request.normalization)
        return BASELINES.get(request.learner, self.evaluated), model

    def compile(self, shards: Sequence[Shard]) -> None:
        """Compile what shards of these sizes need, by computing one of each size.

        An algorithm whose computation changes during training names the outer steps at which it does in `phases`.
        """
        sizes = {len(shard.indices): shard for shard in shards}
        params = self.to_device(self.initial())
        for step in self._phases:
            for shard in sizes.values():
                with self.meter.part("compile"):
                    self.gradient(ShardRequest("gradient", "train", step), params, shard)

    def compute(self, request: ShardRequest, params: Params, shard: Shard, tasks: Any = None) -> MetaGradient | Scores:
        """Return what `request` asks for, of `tasks` if they have been sampled already."""
        if request.kind in _METHODS:
            return self.gradient(request, params, shard, tasks)
        return self.score_or_embed(request, params, shard, tasks)

    def is_transductive(self, request: ShardRequest, params: Params) -> bool:
        """Return whether the queries of a task influence each other's predictions: seen on the first task of a split.

        Raises TaskFailed when the code of the tasks, model or algorithm raises.
        """
        task, spec = self.task(request, 0)
        with explain_failure(request, Shard(0, (0,))):
            algorithm, model = self._learner(request, params, spec)
            context = Context(torch.tensor(0, device=self.device), torch.tensor(NO_NOISE, device=self.device))
            return is_transductive(algorithm, model, self.to_device(params), task, context)

    @property
    def other_normalization(self) -> Literal["transductive", "inductive"] | None:
        """Return the way of normalising that the run did not choose; None where its network has not both."""
        if self.model.normalization == "none" or not self.model.can_be_inductive:
            return None
        return "inductive" if self.model.normalization == "transductive" else "transductive"

    def task_classes(self, split: Split, tasks: int) -> np.ndarray[Any, Any] | None:
        """Return the numbers of the classes of tasks 0, 1, … of a split [tasks, N]; None where the source is silent."""
        told = getattr(self._distributions[split], "task_classes", None)
        return None if told is None else told(range(tasks))

    def task_sources(self, split: Split, tasks: int) -> list[str]:
        """Return the name of the source of tasks 0, 1, … of a split; none where all are of one source."""
        told = getattr(self._distributions[split], "sources", None)
        return [] if told is None else told(range(tasks))

    def _silence(self, shard: Shard) -> Tensor:
        """Return the keys of tasks that are computed without noise."""
        return torch.full((len(shard.indices),), NO_NOISE, device=self.device)

    def _noise(self, shard: Shard) -> Tensor:
        """Return each task's key to the generator: 62 bits of (seed, "noise", index)."""
        low, high = random_words(self.config.seed, stream("noise"), shard.indices, 2).astype("int64").T
        return torch.from_numpy((high >> 2 << 32) | low).to(self.device)

    def to_device(self, tree: Any) -> Any:
        """Return `tree` with its tensors on this worker's device, aligned in memory in every process alike."""
        if self.device.type == "cpu":
            return aligned(tree)
        # From pinned memory the copy does not wait for what the device is computing.
        return tree_map(lambda leaf: leaf.pin_memory().to(self.device, non_blocking=True), tree)


def _without_auto(settings: EngineSettings, engine: Engine) -> EngineSettings:
    """Return `settings` as `engine` resolved them."""
    return dataclasses.replace(settings, vectorize=engine.vectorize, compile="on" if engine.compile else "off")


def with_inner_steps(algorithm: Algorithm, inner_steps: int | None) -> Algorithm:
    """Return `algorithm` with another number of inner steps (MAML on Omniglot: 1 in training, 3 in evaluation)."""
    if inner_steps is None:
        return algorithm
    fields = {field.name for field in dataclasses.fields(algorithm)}  # type: ignore[arg-type]
    name = type(algorithm).__name__
    require("inner_steps" in fields, f"evaluation.inner_steps: {name} has no inner steps: remove it")
    return dataclasses.replace(algorithm, inner_steps=inner_steps)  # type: ignore[type-var]


def driver_worker(config: Config) -> Worker:
    """Build the worker of the driver's process, on `driver_device`."""
    return Worker(config, driver_device(config))
