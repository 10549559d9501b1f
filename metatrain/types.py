"""The types that everything in metatrain speaks. Read this file first.

    task indices -> tasks -> adapted -> MetaGradient -> ordered sum -> TrainState -> checkpoint, metrics

Tensors travel in NamedTuples and plain dicts, which pass through `torch.func` transforms as trees.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from torch import Tensor

from tasks.types import Examples, Split, TaskSpec, Tree

if TYPE_CHECKING:
    from metatrain.engine import Engine
    from metatrain.models import Model

Params = dict[str, Tensor]
"""Flat, as `named_parameters()` gives it. Groups by prefix: "model.", "inner_lr.", "arch."."""

Metrics = dict[str, float]

Prediction = Tensor
"""[n, ways] logits for classes, [n, *spec.y] for regression."""


class Context(NamedTuple):
    """What a task's computation may depend on beside its examples: tensors, so that they replay exactly."""

    step: Tensor
    """The outer step, an int64 scalar: for annealing."""
    noise: Tensor
    """This task's own key to the counter-based generator, an int64 scalar; -1 where nothing random may happen."""


class InnerLoop(NamedTuple):
    """What MAML, ANIL, Meta-SGD and their kin all are: a start, a step repeated `length` times, a loss.

    The inner step t is an int64 scalar, a tensor so that one compiled step serves for all: a table of rates by step is
    read with `index_select`, not branched on.
    """

    start: Callable[[Params, Examples, Context], Tree]
    """(params, support, context) -> fast weights, any tree of tensors."""
    step: Callable[[Params, Tree, Examples, Tensor, Context], Tree]
    """(params, fast, support, t, context) -> fast weights after inner step t."""
    loss: Callable[[Params, Tree, Examples, Examples, Tensor, Context], tuple[Tensor, dict[str, Tensor]]]
    """(params, fast, support, query, t, context) -> (query loss, metrics) of the fast weights after t steps."""
    length: int
    weights: Callable[[Tensor], Tensor] | None = None
    """outer step -> [length + 1] weights of the loss after each step; None weighs the last alone."""
    transpose: Callable[[Params, Tree, Examples, Tensor, Context, Tree], tuple[Params, Tree]] | None = None
    """(params, fast, support, t, context, λ) -> Jacobians of step t, transposed, times λ: (to params, to fast).
    None derives it from `step`; first-order methods say here what they pretend it is."""


class MetaGradient(NamedTuple):
    """SUMS over tasks, never means: the driver divides once, so that no grouping of tasks changes the result."""

    grads: Params
    metrics: dict[str, Tensor]
    num_tasks: Tensor


class Algorithm(Protocol):
    """A way of learning to learn: pure functions for ONE task, beside the settings they close over.

    Implementations are frozen dataclasses; their fields are the settings under `algorithm.` in a configuration.
    """

    def init(self, model: "Model", spec: TaskSpec, seed: int) -> Params:
        """The meta-parameters before the first step."""
        ...

    def trajectory(self, model: "Model", params: Params, support: Examples, context: Context) -> Iterator[Tree]:
        """What is adapted after 0, 1, ... inner steps, each a tree of tensors; one alone where there are no steps."""
        ...

    def predict(self, model: "Model", params: Params, adapted: Tree, x: Tree, context: Context) -> Prediction:
        """What the adapted learner says of `x` [n, *spec.x]."""
        ...

    def meta_gradient(
        self, model: "Model", params: Params, tasks: Any, context: Context, engine: "Engine"
    ) -> MetaGradient:
        """The sum over a batch of tasks of the gradient of each one's query loss with respect to `params`."""
        ...


class Shard(NamedTuple):
    """A fixed list of task indices: the unit of work, of retry and of the ordered sum."""

    number: int
    indices: tuple[int, ...]


class ShardRequest(NamedTuple):
    """What is to be done with every shard of one call. Small and picklable; parameters travel beside it."""

    kind: Literal["gradient", "score"]
    split: Split
    step: int
    learner: str = "trained"
    """Whose predictions are scored: the run's own algorithm, or a baseline by name."""


class Scores(NamedTuple):
    """Per-task scores of one shard, in index order: name -> [tasks, points], "inner_step" saying which points."""

    values: dict[str, Tensor]


class WorkerEvent(NamedTuple):
    """Something that happened to the workers and that a person may want to know, or act on."""

    kind: str
    text: str


DRIVER_NODE_LEAVING = "driver-leaving"
"""The kind of event upon which the driver keeps its state at once: its own machine is about to go."""


class Executor(Protocol):
    """Where shards are computed. Whatever implements it, the numbers are the same."""

    def map(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> Iterator[Scores]:
        """Score every shard; results come in shard order."""
        ...

    def sum(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> MetaGradient:
        """The meta-gradient of all shards, added along the balanced binary tree over shard number."""
        ...

    def compile(self, shards: Sequence[Shard]) -> None:
        """Have every worker compile what it needs for training shards like these, so that no step has to."""
        ...

    def events(self) -> list[WorkerEvent]:
        """What happened to workers since this was last asked."""
        ...

    def health(self) -> Mapping[str, float]:
        """Numbers on the state of the workers, recorded with the run; empty where there is nothing to say."""
        ...

    def report(self) -> Mapping[str, Any]:
        """What was done where: tasks by worker process, retries."""
        ...

    def close(self) -> None:
        """Give back what was taken. Calling it twice does no harm."""
        ...


class WorkersLost(RuntimeError):
    """No worker has answered for too long, or none can be made."""


class TaskFailed(RuntimeError):
    """Computing some tasks raised an error, most likely in a user's own part. The message says which, and where."""


RunStatus = Literal["finished", "failed", "interrupted"]


class Recorder(Protocol):
    """Where the story of a run is written. Only the driver holds one.

    Steps may be recorded again after a resume, with equal values: a recorder keeps each (key, step) once.
    """

    def start(self, step: int, total: int) -> None:
        """Recording begins; the run continues after `step` (0 for a new one) towards `total` steps."""
        ...

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at an outer step. Keys are "train/loss", "validation/accuracy", "time/tasks_per_second"."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file of the run that is complete and worth keeping where the recorder keeps things."""
        ...

    def event(self, step: int, kind: str, text: str) -> None:
        """Something a person may want to know: a checkpoint, a retry, a worker replaced."""
        ...

    def flush(self) -> None:
        """When this returns, everything recorded so far is durable. The driver calls it before each checkpoint."""
        ...

    def close(self, status: RunStatus) -> None:
        """The story ends. A run that did not finish may be started again later."""
        ...
