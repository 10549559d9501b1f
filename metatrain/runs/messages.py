"""Write the messages of failed runs: cause, last checkpoint, resume command."""

import errno
import shlex
from contextlib import suppress

from metatrain.errors import Diverged
from metatrain.runs import checkpoints
from metatrain.runs.run import Run
from metatrain.trust import names_unknown_code


def failure_message(error: Exception, run: Run) -> str:
    """Return the cause and the resume command, one line each; where the loss diverged, the last checkpoint between."""
    lines = [_cause(error), *([_last_checkpoint(run)] if isinstance(error, Diverged) else [])]
    return "\n".join([*lines, f"the run is kept in {run.where}: {resume_command(run)}"])


def resume_command(run: Run) -> str:
    """Return the command that resumes the run, in a phrase; with --trust where it names code of somebody else."""
    trust = " --trust" if names_unknown_code(run.config) else ""
    return f"go on with `metatrain train --resume {shlex.quote(run.where)}{trust}`"


def _cause(error: Exception) -> str:
    """Return the error in one line, with the remedy where a disk is full."""
    line = " ".join(str(error).split())
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{line}: free some space on that disk" if full else line


def _last_checkpoint(run: Run) -> str:
    with suppress(checkpoints.DamagedError):
        newest = checkpoints.newest(run.checkpoints)
        if newest is not None:
            return f"the last good checkpoint is {run.checkpoints / f'{newest.step:08d}'}, of step {newest.step}"
    return "there is no checkpoint yet"
