"""Score learners so that a signal ends it between two shards, with the progress on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import typer

from metatrain.errors import EvaluationStopped
from metatrain.signals import graceful_shutdown
from metatrain.tracking.console import ProgressRecorder


class Watched(NamedTuple):
    """What shows the progress, and what says whether to stop."""

    recorder: ProgressRecorder
    stop: Callable[[], bool]


@contextmanager
def interruptible(remedy: str) -> Iterator[Watched]:
    """Show the progress of the block. Where a signal stops it, print where and the `remedy`, and exit with 128 plus its
    number.
    """
    progress = ProgressRecorder()
    with graceful_shutdown() as shutdown:
        try:
            yield Watched(progress, shutdown.is_set)
        except EvaluationStopped as stopped:
            print(f"stopped {stopped}: {remedy}", file=sys.stderr)
            raise typer.Exit(128 + shutdown.signal) from None
        finally:
            progress.release()
