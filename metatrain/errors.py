"""Define the errors of a run that has begun.

They stand apart from what raises them, so that the command line can name them without importing torch: it exits
with 1 on RunFailed, RunLost, WorkersLost and TaskFailed, and with 2 on any other ValueError or OSError.
"""


class RunFailed(Exception):
    """Report a failed run: the message holds the cause and the command that resumes it."""


class RunLost(RuntimeError):
    """Report that another driver has taken the run over, presuming this one dead."""


class RunOwnedError(ValueError):
    """Report that another driver, still alive, owns the run."""


class WorkersLost(RuntimeError):
    """Report that no worker has answered for too long, or that none can be started."""


class TaskFailed(RuntimeError):
    """Report that computing tasks raised, most likely in a user's own code. The message says which tasks and where."""


class Diverged(ArithmeticError):
    """Report that the loss or its gradient is not finite."""


class EvaluationStopped(Exception):
    """Report a validation or test that was stopped between shards. The message says where."""


class StepAbandoned(Exception):
    """Report a step that did not end after a signal to stop: it is left to a resume."""
