"""Bundle what the driver of a run works with."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from metatrain.runs import Run
from metatrain.settings import Config
from metatrain.training.worker import Worker
from metatrain.types import Executor, Recorder

T = TypeVar("T")


class Once(Protocol):
    """Do something once for all the processes that take the steps of a run together."""

    def __call__(self, action: Callable[[], T]) -> T:
        """Return what `action` returns, a tree of tensors and plain values, in each of them. Raise what it raises."""


def here(action: Callable[[], T]) -> T:
    """Call `action`: the `once` of a session that is alone."""
    return action()


def never() -> bool:
    """Return False: the `stop` of a session that nobody interrupts."""
    return False


class Session(NamedTuple):
    """What the driver of a run works with. `worker` is the driver's own; those of the executor may be elsewhere.

    stop: asked after every step, and between the shards of a validation or test; when it returns True, what is done is
    kept and the rest is left to a resume.
    once: what reads or writes the run's folder goes through it; of ranks that train together, one has the folder.
    """

    worker: Worker
    executor: Executor
    recorder: Recorder
    home: Run
    stop: Callable[[], bool] = never
    once: Once = here

    @property
    def config(self) -> Config:
        """Return the resolved configuration."""
        return self.worker.config
