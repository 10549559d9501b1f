"""Say which tasks could not be computed, at which step, and in which line of code."""

from collections.abc import Iterator
from contextlib import contextmanager

from metatrain.engine import NotCompilable
from metatrain.errors import TaskFailed
from metatrain.types import Shard, ShardRequest
from tasks.plugins import USER_CODE_ERRORS, describe_error


@contextmanager
def explain_failure(request: ShardRequest, shard: Shard) -> Iterator[None]:
    """Turn what computing a shard raises into TaskFailed, with the tasks, the step and the line of code."""
    try:
        yield
    except NotCompilable:
        raise
    except USER_CODE_ERRORS as error:
        last = f" to {shard.indices[-1]}" if len(shard.indices) > 1 else ""
        what = "example" if request.kind == "embed" else "task"
        where = f"{request.split} {what} {shard.indices[0]}{last} at step {request.step}"
        remedy = "lower executor.shard_size" if _is_memory(error) else "fix that code"
        raise TaskFailed(f"{where}: {describe_error(error)}: {remedy}") from error


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "allocate" in str(error) or "out of memory" in str(error)
