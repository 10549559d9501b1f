"""Open the tasks of a split as the algorithm of a run reads them: corrupted, labelled by class, as sequences."""

import dataclasses
from typing import Any

from metatrain.algorithms.base import Algorithm
from metatrain.settings import Config
from tasks.class_labels import label_classes
from tasks.corruptions import Corruption, corrupted
from tasks.environments.shape import EnvironmentShape
from tasks.few_shot import EmptySplit
from tasks.opening import open_tasks
from tasks.sequences import as_sequences
from tasks.types import Split, TaskDistribution


def open_split(config: Config, split: Split, queries: int | None = None) -> TaskDistribution[Any]:
    """Return the tasks of `split`, if asked with another number of queries. ValueError: the source has none such."""
    shape, seed = (config.tasks.train, config.seed) if split == "train" else (config.tasks.test, config.evaluation.seed)
    asked = shape
    if queries is not None and not isinstance(shape, EnvironmentShape):
        asked = dataclasses.replace(shape, queries=queries)
    source, name, corruption = config.tasks.source, config.names.tasks, config.evaluation.corruption
    if split == "test" and corruption is not None:
        source = corrupted(source, name, Corruption(corruption, config.evaluation.severity))
    found = open_tasks(source, name, split, asked, seed)
    # A split without classes is that of an evaluation, which trains on none.
    if split == "train" and trains_on_classes(config.algorithm) and not isinstance(found, EmptySplit):
        return label_classes(found, config.names.tasks)
    if reads_sequences(config.algorithm) and not isinstance(found, EmptySplit):
        return as_sequences(found, config.names.tasks, split, seed)
    return found


def trains_on_classes(algorithm: Algorithm) -> bool:
    """Return whether an algorithm trains on minibatches that are labelled by the classes of the whole split."""
    return bool(getattr(algorithm, "trains_on_classes", False))


def reads_sequences(algorithm: Algorithm) -> bool:
    """Return whether an algorithm reads a task example by example (`tasks.types.LabelledSequence`)."""
    return bool(getattr(algorithm, "reads_sequences", False))
