"""What is said of a run that had begun and came to grief: what went wrong, what is kept, how to go on."""

import errno
import shlex
from contextlib import suppress

from metatrain import runs
from metatrain.runs import checkpoints
from metatrain.training.outer_loop import Diverged


class RunFailed(Exception):
    """A run that had begun came to grief; the message names it, so that it can go on."""


def story(error: Exception, home: runs.Run) -> str:
    """Two lines, or three where the loss became no number."""
    lines = [_told(error), *([_last_good(home)] if isinstance(error, Diverged) else [])]
    return "\n".join([*lines, f"the run is kept in {home.where}: {go_on(home)}"])


def go_on(home: runs.Run) -> str:
    """The command that goes on with a run."""
    return f"go on with `metatrain train --resume {shlex.quote(home.where)}`"


def _told(error: Exception) -> str:
    """In one line; of a disk that is full, the remedy too."""
    line = " ".join(str(error).split())
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{line}: free some space on that disk" if full else line


def _last_good(home: runs.Run) -> str:
    with suppress(checkpoints.DamagedError):
        found = checkpoints.newest(home.checkpoints)
        if found is not None:
            return f"the last good checkpoint is {home.checkpoints / f'{found.step:08d}'}, of step {found.step}"
    return "there is no checkpoint yet"
