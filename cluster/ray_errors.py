"""Classify and describe the errors that Ray raises for calls to actors."""

import builtins

from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from metatrain.engine import NotCompilable
from metatrain.errors import TaskFailed

ACTOR_DEAD = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, ActorUnschedulableError)
"""What Ray raises for calls to a dead actor; not all of them derive from RayActorError."""


def describe_death(error: RayError) -> str:
    """Say in a few words how an actor died."""
    if isinstance(error, OutOfMemoryError):
        return "was killed, as its node had no memory left"
    if isinstance(error, RayActorError) and error.preempted:
        return "went with its node, which was preempted"
    text = str(error)
    return "went with its node" if "node" in text and "died" in text.split("node", 1)[1][:200] else "died"


def unwrap_error(error: RayTaskError) -> Exception:
    """Return what the worker raised as NotCompilable or TaskFailed, without Ray's traceback in its message."""
    cause = error.cause
    if isinstance(cause, NotCompilable):
        return NotCompilable(str(cause))
    return TaskFailed(
        str(cause) if isinstance(cause, TaskFailed) else " ".join(f"{type(cause).__name__}: {cause}".split())
    )


def last_line(error: RayError) -> str:
    """Return the last line of the message, where Ray puts the actor's own exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def names_os_error(line: str) -> bool:
    """Tell whether a line begins with the name of an OSError, whose cause may pass."""
    kind = getattr(builtins, line.partition(":")[0], None)
    return isinstance(kind, type) and issubclass(kind, OSError)
