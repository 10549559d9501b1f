"""The data types and protocols of metatrain. Read this file first.

    task indices -> tasks -> adapted -> MetaGradient -> ordered sum -> TrainState -> checkpoint, metrics

Tensors travel in NamedTuples and plain dicts, which pass through `torch.func` transforms as trees.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from tasks.types import Examples, Split, Tree

Params = dict[str, Tensor]
"""Flat, as `named_parameters()` gives it. Groups by prefix: "model.", "inner_lr.", "arch."."""

Metrics = dict[str, float]


class Gaussian(NamedTuple):
    """A density for each query's value: independent normal distributions with this mean and std, [n, *spec.y]."""

    mean: Tensor
    std: Tensor


class GaussianMixture(NamedTuple):
    """A density for each query's value [d]: S normal distributions of equal weight, of mean and std [n, S, d]."""

    mean: Tensor
    std: Tensor


class Histogram(NamedTuple):
    """A density for each query's value [1]: uniform within bins of equal width, and a half of a normal at both ends.

    logits: of the bins from below, [n, B], the first and last of which are those ends; span: where the inner bins begin
    and end, [n, 2]. The ends have a standard deviation of an eighth of the span.
    """

    logits: Tensor
    span: Tensor


Density = Gaussian | GaussianMixture | Histogram

Prediction = Tensor | Density
"""[n, ways] logits for classes; for regression [n, *spec.y] values, or a density of them."""


class Context(NamedTuple):
    """All that a task's computation may depend on beside its examples: tensors, so that it can be replayed exactly."""

    step: Tensor
    """The outer step, an int64 scalar: for annealing."""
    noise: Tensor
    """This task's key to the counter-based generator, an int64 scalar; -1 turns everything random off."""


class InnerLoop(NamedTuple):
    """The inner loop of an optimisation-based method such as MAML: a start, a step repeated `length` times, a loss.

    The inner step t is an int64 scalar tensor, so that one compiled step serves for all t: read a table of rates by
    step with `index_select` instead of branching on t.
    """

    start: Callable[[Params, Examples, Context], Tree]
    """(params, support, context) -> fast weights, any tree of tensors."""
    step: Callable[[Params, Tree, Examples, Tensor, Context], Tree]
    """(params, fast, support, t, context) -> fast weights after inner step t."""
    loss: Callable[[Params, Tree, Examples, Examples, Tensor, Context], tuple[Tensor, dict[str, Tensor]]]
    """(params, fast, support, query, t, context) -> (query loss, metrics) of the fast weights after t steps."""
    length: int
    weights: Callable[[Tensor], Tensor] | None = None
    """outer step -> [length + 1] weights of the loss after each step; None: only the last loss counts."""
    transpose: Callable[[Params, Tree, Examples, Tensor, Context, Tree], tuple[Params, Tree]] | None = None
    """(params, fast, support, t, context, λ) -> transposed Jacobians of step t times λ: (to params, to fast).
    None derives them from `step`; first-order methods set their approximation here."""


class MetaGradient(NamedTuple):
    """SUMS over tasks, never means: the driver divides once, so that no grouping of tasks changes the result."""

    grads: Params
    metrics: dict[str, Tensor]
    num_tasks: Tensor

    def means(self) -> tuple[Params, Metrics]:
        """Return gradients and metrics as means over tasks."""
        metrics = {name: float(value) / int(self.num_tasks) for name, value in self.metrics.items()}
        return {name: value / self.num_tasks for name, value in self.grads.items()}, metrics


class Shard(NamedTuple):
    """A fixed list of task indices: the unit of work, of retry and of the ordered sum."""

    number: int
    indices: tuple[int, ...]


class ShardRequest(NamedTuple):
    """What to compute for every shard of one call. Small and picklable; the parameters are sent separately."""

    kind: Literal["gradient", "statistics", "fisher", "surrogate", "score", "embed"]
    """Of "embed" the indices are not those of tasks but the places of examples among all of the split."""
    split: Split
    step: int
    learner: str = "trained"
    """The learner that is scored: "trained" is the run's own algorithm; else the name of a baseline."""
    normalization: Literal["transductive", "inductive"] | None = None
    """How the network normalises the queries that are scored; None: as the run does."""
    sent: tuple[str, ...] = ()
    """Prefixes of parameters that are sent beside the run's own, each a whole set of them."""

    @property
    def counts(self) -> bool:
        """Return whether its tasks count as done: other requests come back to the same tasks."""
        return self.kind in ("gradient", "statistics") and not self.sent


STEPS_OF_TRAINING = ("gradient", "fisher", "surrogate")
"""The kinds of requests that an outer step is made of."""


class Scores(NamedTuple):
    """Per-task scores of one shard, in index order: name -> [tasks, points]; "inner_step" holds each point's step.

    Of a request to embed: "features" -> [examples, D].
    """

    values: dict[str, Tensor]


class WorkerEvent(NamedTuple):
    """A change in the workers that the run records: one joined, was replaced, or is about to leave."""

    kind: str
    text: str


DRIVER_NODE_LEAVING, HEAD_SILENT = URGENT = "driver-leaving", "head-silent"
"""The kinds of event on which the driver saves a checkpoint at once: its own machine is about to be taken away, or the
cluster may be gone."""


class Executor(Protocol):
    """Computes shards, in process or on a cluster. The numbers are the same for every implementation."""

    def map(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> Iterator[Scores]:
        """Score every shard; yield results in shard order."""

    def sum(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> MetaGradient:
        """Return the meta-gradient of all shards, added along the balanced binary tree over shard numbers."""

    def compile(self, shards: Sequence[Shard]) -> None:
        """Have every worker compile what training shards of these sizes need, so that no step has to."""

    def events(self) -> list[WorkerEvent]:
        """Return the events since the previous call."""

    def health(self) -> Mapping[str, float]:
        """Return measurements of the workers to record with the run; empty if there are none."""

    def report(self) -> Mapping[str, Any]:
        """Return what was done where: tasks by worker process, retries."""

    def close(self) -> None:
        """Release all resources. Calling it twice does no harm."""


RunStatus = Literal["finished", "failed", "interrupted"]


class Recorder(Protocol):
    """Records the metrics and events of a run. Only the driver holds one.

    Steps may be recorded again after a resume, with equal values: a recorder keeps each (key, step) once.
    """

    def start(self, step: int, total: int) -> None:
        """Begin recording a run that continues after `step` (0 for a new one) towards `total` steps."""

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at an outer step, by keys such as "train/loss" or "validation/accuracy"."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` tasks of a stage are scored: "validating", "testing trained". Nothing is kept."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Store a file of the run that is complete, where the recorder keeps files."""

    def event(self, step: int, kind: str, text: str) -> None:
        """Record an event: a checkpoint, a retry, a worker replaced."""

    def flush(self) -> None:
        """Return once everything recorded so far is durable. The driver calls it before each checkpoint."""

    def close(self, status: RunStatus) -> None:
        """End recording. A run that did not finish may be started again later."""


def __getattr__(name: str) -> Any:
    """Return `Algorithm`, under the import path that is public: its protocol speaks of the engine, a layer above."""
    if name == "Algorithm":
        return importlib.import_module("metatrain.algorithms.base").Algorithm
    raise AttributeError(f"module 'metatrain.types' has no attribute '{name}'")
