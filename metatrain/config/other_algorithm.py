"""Evaluate a run's parameters by another algorithm than the one that learned them, as far as they suffice."""

from collections.abc import Mapping, Sequence
from typing import Any

from metatrain.algorithms.pretrained.pretraining import CLASSIFIER
from metatrain.config.evaluation_overrides import split_tasks_file
from metatrain.settings import Config
from metatrain.training.outer_loop import with_statistics
from metatrain.training.splits import trains_on_classes
from metatrain.training.worker import Worker
from metatrain.types import Executor, Params
from metatrain.validation import require
from metatrain.yaml_config import apply_overrides, flatten


def with_other_algorithm(plain: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a plain configuration without the settings of its algorithm where `overrides` choose another."""
    chosen = apply_overrides({}, overrides).get("algorithm")
    name = chosen.get("name") if isinstance(chosen, Mapping) else None
    if name is None or name == plain["algorithm"]["name"]:
        return plain
    evaluation, outer = plain["evaluation"] | {"inner_steps": None}, plain["outer"] | {"groups": {}}
    return plain | {"algorithm": {}, "evaluation": evaluation, "outer": outer}


def select_params(found: Params, worker: Worker, trained: Config, overrides: Sequence[str]) -> tuple[Params, bool]:
    """Return the parameters that the worker's algorithm reads, out of a run's; and whether statistics are to be added.

    What no adaptation reads, a classifier of training classes, is left random. ValueError: the run lacks others.
    """
    name, learned_by = worker.config.names.algorithm, trained.names.algorithm
    if name == learned_by and not trains_on_classes(worker.algorithm):
        return found, False
    kept = getattr(worker.algorithm, "kept", ())
    params, lacking = {}, []
    for key, value in worker.initial().items():
        same = key in found and found[key].shape == value.shape
        params[key] = found[key] if same else value
        if not same and not key.startswith(CLASSIFIER):
            lacking.append(key)
    differ = [key for key in lacking if key not in kept]
    if differ and name == learned_by:
        return found, False  # the model differs, which `require_same` tells
    require(
        not differ,
        f"algorithm.name: {name} reads {', '.join(differ[:2])}, which {learned_by} has not learned in this shape: set "
        f"one that reads the network's body alone, such as nearest_centroid, or train {name} with initialize=RUN",
    )
    if lacking:
        file, settings = split_tasks_file(overrides)
        others = [key for key in flatten(apply_overrides({}, settings)) if key.startswith("tasks.")]
        foreign = [key for key in others if not key.startswith(("tasks.test", "tasks.train"))]
        known = worker.samples_training_tasks and not foreign and file is None
        require(
            known,
            f"algorithm.name: {name} reads {lacking[0]}, a mean over the tasks trained on, which {learned_by} does not "
            "keep: evaluate on the run's own data, or set nearest_centroid",
        )
    return params, bool(lacking)


def add_statistics(params: Params, worker: Worker, executor: Executor) -> Params:
    """Return `params` with the means over training tasks that the worker's algorithm keeps."""
    return with_statistics(worker.algorithm, executor, params, worker.config.executor.shard_size)
