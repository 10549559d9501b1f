"""What computes shards: one task distribution a split, one algorithm, one model, one engine.

The same object works in the driver's process and inside a Ray actor. It keeps no state between shards: what it
returns is a function of the configuration, the parameters and the shard.
"""

import ctypes
import dataclasses
import sys
from functools import cached_property
from typing import Any, overload

import torch
from torch.utils._pytree import tree_map

from metatrain.baselines import BASELINES
from metatrain.checks import require
from metatrain.engine import Engine, resolve_vectorize
from metatrain.evaluation import score_tasks
from metatrain.models import Model, build_model
from metatrain.models.dropout import SILENT
from metatrain.settings import Config
from metatrain.types import Algorithm, Context, Job, MetaGradient, Params, Scores, Shard
from tasks.randomness import stream, words
from tasks.types import SPLITS, Split, TaskDistribution


class Worker:
    """Computes the shards of one run on one device."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        source = config.tasks.source.settings
        shapes = {"train": config.tasks.train, "validation": config.tasks.test, "test": config.tasks.test}
        seeds = {"train": config.seed, "validation": config.evaluation.seed, "test": config.evaluation.seed}
        self._distributions: dict[Split, TaskDistribution[Any]] = {
            split: source.distribution(split, shapes[split], seeds[split]) for split in SPLITS
        }
        trained_for = self._distributions["train"].spec
        self.model: Model = build_model(config.model.settings, trained_for, config.seed).to(device)
        self.algorithm: Algorithm = config.algorithm.settings
        self.evaluated: Algorithm = with_inner_steps(self.algorithm, config.evaluation.inner_steps)
        self.engine = Engine(resolve_vectorize(config.engine.vectorize, self._convolves, device))
        torch.set_num_threads(config.engine.threads)
        keep_freed_memory()

    @cached_property
    def _convolves(self) -> bool:
        return any(isinstance(m, torch.nn.modules.conv._ConvNd) for m in self.model.body.modules())

    def initial(self) -> Params:
        """The meta-parameters before the first step."""
        return self.algorithm.init(self.model, self._distributions["train"].spec, self.config.seed)

    @overload
    def compute(self, job: Job, params: Params, shard: Shard) -> MetaGradient | Scores: ...
    @overload
    def compute(self, job: Job, params: Params, shard: Shard) -> MetaGradient | Scores: ...
    def compute(self, job: Job, params: Params, shard: Shard) -> MetaGradient | Scores:
        """The meta-gradient of a shard, or its scores, on the CPU."""
        return MetaGradient({}, {}, {}, torch.zeros(()))
