"""Check that a configuration can be trained before a run is created.

Checks that memory holds the model and a shard of tasks, that the groups of the outer optimiser have members, and, if a
part is the user's own, that one task's episode, meta-gradient and scores are what the protocols ask for.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metatrain.config.initial import find_initial
from metatrain.config.load import resolve_paths
from metatrain.config.room import check_memory
from metatrain.errors import TaskFailed
from metatrain.runs import Run
from metatrain.settings import Config, OuterSettings
from metatrain.training.outer_loop import group_names
from metatrain.training.worker import Worker
from metatrain.types import MetaGradient, Params, Shard, ShardRequest
from metatrain.validation import require
from tasks.few_shot import EmptySplit
from tasks.plugins import USER_CODE_ERRORS, describe_error
from tasks.types import (
    SPLITS,
    Episode,
    Examples,
    OracleEpisode,
    PaddedExamples,
    Shapes,
    TaskSpec,
    Tree,
    is_shape,
)

_TASKS = 2
"""Tasks of the user's own source that are checked; two, so that wrong stacking shows."""


def dry_run(config: Config, device: torch.device, home: Run | None = None) -> Worker:
    """Return a worker of `config`, resolved, on `device`, after these checks. ValueError: the field and the remedy.

    home: the run that goes on or is evaluated; None for a new one.
    """
    config = resolve_paths(config)
    _check_optimizer(config)
    with explain_user_errors(config):
        check_memory(config)
        worker = Worker(config, device)
        _check_support(worker)
        _check_examples(worker)
        worker.given = find_initial(worker, home)
        group_names(worker.initial(), config.outer)
        if config.names.of_user_code:
            _try_one_task(worker)
    return worker


def require_same(params: Params, worker: Worker) -> None:
    """Check that `params`, of a checkpoint, have the names and shapes of the worker's. ValueError: they differ."""
    found, wanted = _shapes(params), _shapes(worker.initial())
    if (name := _first_difference(found, wanted)) is not None:
        raise ValueError(
            f"model, algorithm or tasks.train: they make {name} {wanted.get(name, 'absent')}, and the run has it "
            f"{found.get(name, 'absent')}: leave them as the run was trained"
        )
    for name, value in worker.initial().items():
        require(
            params[name].dtype == value.dtype,
            f"the run's checkpoint has {name} as {params[name].dtype}, not {value.dtype}: restore that checkpoint",
        )


@contextmanager
def explain_user_errors(config: Config) -> Iterator[None]:
    """Turn what user code raises into ValueError that names the configuration's field."""
    own = config.names.of_user_code
    fields = " or ".join(own) if own else "model"
    try:
        yield
    except TaskFailed as error:
        raise ValueError(f"{fields}: {error}") from error
    except (ValueError, OSError):
        raise
    except USER_CODE_ERRORS as error:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            raise ValueError(f"model: {describe_error(error)}: lower its width or its depth") from error
        if not own:
            raise
        raise ValueError(f"{fields}: {describe_error(error)}: fix that code") from error


def _check_optimizer(config: Config) -> None:
    """Check that no settings of the outer optimiser are given to an algorithm that has none."""
    if getattr(config.algorithm, "uses_optimizer", True):
        return
    usual = OuterSettings(steps=config.outer.steps, tasks_per_step=config.outer.tasks_per_step)
    for field in dataclasses.fields(usual):
        same = getattr(config.outer, field.name) == getattr(usual, field.name)
        none = f"has no effect with {config.names.algorithm}, which chooses the length of its steps itself"
        require(same, f"outer.{field.name}: {none}: remove it")


def _check_support(worker: Worker) -> None:
    """Check that the algorithm reads support examples of another shape than queries, if there are such."""
    spec, config = worker.distribution("train").spec, worker.config
    reads = spec.support is None or getattr(config.algorithm, "separate_support", False)
    require(
        reads,
        f"algorithm.name: {config.names.algorithm} reads support examples of the shape of queries, {spec.x}, and those "
        f"of {config.names.tasks} have {spec.support}: set described_protonet, or another with separate_support",
    )
    tested = worker.distribution("test").spec
    differ = f"tasks.test: support sets are of {tested.support_x}, and those of tasks.train of {spec.support_x}"
    alike = tested.support_x == spec.support_x or spec.support is None
    require(alike, f"{differ}: set descriptions and shots alike in both, 0 or more")


def _check_examples(worker: Worker) -> None:
    """Check that the algorithm acts in environments, reads sequences, padded sets and missing values, as there are."""
    config = worker.config
    specs = [worker.distribution(split).spec for split in SPLITS]
    require(
        getattr(config.algorithm, "acts", False) or not any(spec.kind == "environment" for spec in specs),
        f"algorithm.name: {config.names.algorithm} learns from examples, and tasks of {config.names.tasks} are "
        "environments: set maml_trpo or rl2",
    )
    require(
        getattr(config.algorithm, "reads_sequences", False) or not any(spec.ordered for spec in specs),
        f"algorithm.name: {config.names.algorithm} adapts to a support set, and tasks of {config.names.tasks} are "
        "sequences: set lstm, mann or snail",
    )
    require(
        getattr(config.algorithm, "reads_masks", False) or not any(spec.masked for spec in specs),
        f"algorithm.name: {config.names.algorithm} takes support sets of one size, and those of {config.names.tasks} "
        "differ: set tasks.fewest=null, or an algorithm that reads padded sets, such as tnp or in_context_table",
    )
    require(
        getattr(config.algorithm, "reads_missing", False) or not any(spec.missing for spec in specs),
        f"algorithm.name: {config.names.algorithm} reads no missing values, and {config.names.tasks} has some: set "
        "in_context_table",
    )


def _try_one_task(worker: Worker) -> None:
    """Compute one task with the user's own parts. ValueError: what they return is not what the protocols ask for."""
    config = worker.config
    for split in SPLITS:
        distribution = worker.distribution(split)
        if isinstance(distribution, EmptySplit) or distribution.spec.ragged:  # of an evaluation, or drawn by us
            continue
        try:
            found = distribution.episodes(range(_TASKS))
        except USER_CODE_ERRORS as error:
            raise ValueError(f"tasks.name: the first {split} tasks: {describe_error(error)}: fix that code") from error
        _check_episodes(found, distribution.spec, f"tasks.name: episodes() of '{config.names.tasks}'")
    params, shard = worker.to_device(worker.initial()), Shard(0, (0,))
    if isinstance(worker.distribution("train"), EmptySplit):
        worker.score(ShardRequest("score", "test", 0), params, shard)
        return
    eager = copy.copy(worker)
    eager.engine = dataclasses.replace(worker.engine, compile=False)  # compiling takes half a minute
    found = eager.gradient(ShardRequest("gradient", "train", 0), params, shard)
    _check_gradient(found, params, f"algorithm.name: meta_gradient of '{config.names.algorithm}'")
    worker.score(ShardRequest("score", "test", 0), params, shard)


def _check_episodes(found: Any, spec: TaskSpec, who: str) -> None:
    """Check that `found` is a batch of `_TASKS` tasks of `spec`. ValueError: it is not."""
    parts = found[:2] if isinstance(found, Episode | OracleEpisode) else ()
    known = (Examples, PaddedExamples)
    whole = bool(parts) and all(isinstance(part, known) and isinstance(part.y, Tensor) for part in parts)
    require(whole, f"{who} returns a {type(found).__name__}: return a tasks.types.Episode of two Examples")
    for name, part in zip(Episode._fields, parts, strict=True):
        dtype = torch.int64 if spec.kind == "classification" else torch.get_default_dtype()
        _check_tensor(part.y, spec.y, dtype, f"{who}: {name}.y")
        if spec.ways is not None:
            fits = int(part.y.min()) >= 0 and int(part.y.max()) < spec.ways
            require(fits, f"{who}: {name}.y has labels beyond the task's {spec.ways} ways: use 0 to {spec.ways - 1}")
        _check_inputs(part.x, spec.support_x if name == "support" else spec.x, f"{who}: {name}.x")


def _check_inputs(found: Tree, shapes: Shapes, what: str) -> None:
    """Check a tensor, or the tensors of a dict, by shape. ValueError: they are not of these shapes."""
    if is_shape(shapes):
        if isinstance(found, Tensor):
            _check_tensor(found, shapes, torch.get_default_dtype(), what)
        return
    named = isinstance(shapes, Mapping) and isinstance(found, Mapping) and found.keys() == shapes.keys()
    require(named, f"{what} is a {type(found).__name__} for shapes {shapes}: return a dict of tensors with these keys")
    for name, shape in shapes.items():
        _check_inputs(found[name], shape, f"{what}[{name!r}]")


def _check_tensor(found: Tensor, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
    fits = found.dim() == 2 + len(shape) and len(found) == _TASKS and tuple(found.shape[2:]) == shape
    wanted = f"[{', '.join(['tasks', 'examples', *map(str, shape)])}]"
    require(fits, f"{what} has shape {list(found.shape)} for {_TASKS} tasks: return {wanted}, as the spec says")
    require(found.dtype == dtype, f"{what} is {found.dtype}: return {dtype}")
    require(bool(torch.isfinite(found).all()), f"{what} holds values that are not finite: return finite ones")


def _check_gradient(found: Any, params: Params, who: str) -> None:
    """Check that `found` is a MetaGradient for `params`. ValueError: it is not."""
    is_one = isinstance(found, MetaGradient) and isinstance(found.grads, Mapping)
    require(is_one, f"{who} returns a {type(found).__name__}: return a metatrain.types.MetaGradient")
    got, wanted = _shapes(found.grads), _shapes(params)
    if (name := _first_difference(got, wanted)) is not None:
        have, need = got.get(name, "nothing"), wanted.get(name, "nothing")
        raise ValueError(f"{who} returns {have} for {name}, not {need}: return the gradient of every parameter")
    loss = found.metrics.get("loss") if isinstance(found.metrics, Mapping) else None
    scalar = isinstance(loss, Tensor) and loss.numel() == 1
    require(scalar, f"{who} returns no metrics['loss']: return the sum of the query losses")


def _first_difference(found: Mapping[str, list[int]], wanted: Mapping[str, list[int]]) -> str | None:
    """Return the first name, in alphabetical order, whose shapes differ or that one of the two lacks."""
    return min((name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)), default=None)


def _shapes(params: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in params.items()}
