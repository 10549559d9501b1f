"""Embed examples one by one: what becomes of each does not depend on those beside it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatrain.models import Model
from metatrain.models.dropout import NO_NOISE
from metatrain.settings import Config
from metatrain.types import Params
from metatrain.validation import require
from tasks.few_shot import ClassPool, count_examples, locate_examples
from tasks.types import Split

REFERENCE = 256
"""Training examples by whose statistics examples are normalised."""


def pool_of(config: Config, split: Split) -> ClassPool:
    """Return the classes of examples that the tasks of a split are drawn from. ValueError: the tasks have none."""
    source: Any = config.tasks.source
    alone = f"tasks.name: {config.names.tasks} has no classes of examples to embed"
    require(hasattr(source, "pool"), f"{alone}: choose one that has, such as image_folder")
    pool: ClassPool = source.pool(split)
    return pool


def reference_examples(model: Model, training: ClassPool) -> Tensor | None:
    """Return REFERENCE training examples, or all, at equal distances in the order of classes.

    None for a network without statistics of batches. ValueError: the network cannot be given any.
    """
    if model.with_normalization("inductive").normalization == "none":
        return None
    if not training.num_classes:
        alone = (
            "model: its statistics of batches are taken from training examples, and the tasks have no training classes"
        )
        raise ValueError(f"{alone}: give it some by tasks.splits, or set model.normalization=group")
    places = np.linspace(0, count_examples(training) - 1, REFERENCE).astype(np.int64)
    return training.examples(*locate_examples(training, np.unique(places)))


def embed_examples(model: Model, params: Params, x: Tensor, reference: Tensor | None) -> Tensor:
    """Return the features of examples [n, D], float32 on the CPU, normalised by the statistics of `reference`."""
    noise = torch.tensor(NO_NOISE, device=x.device)
    with torch.no_grad():
        features = model.with_normalization("inductive").embed(params, x, noise, reference)
    return features.float().cpu()
