"""Bundle what the driver of a run works with."""

from collections.abc import Callable
from typing import NamedTuple

from metatrain.runs import Run
from metatrain.settings import Config
from metatrain.training.worker import Worker
from metatrain.types import Executor, Recorder


def never() -> bool:
    """Return False: the `stop` of a session that nobody interrupts."""
    return False


class Session(NamedTuple):
    """What the driver of a run works with. `worker` is the driver's own; those of the executor may be elsewhere.

    stop: asked after every step, and between the shards of a validation or test; when it returns True, what is done is
    kept and the rest is left to a resume.
    """

    worker: Worker
    executor: Executor
    recorder: Recorder
    home: Run
    stop: Callable[[], bool] = never

    @property
    def config(self) -> Config:
        """Return the resolved configuration."""
        return self.worker.config
