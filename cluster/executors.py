"""Open the executor that a configuration names: in this process, or on Ray."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial

from metatrain.signals import deferred_signals
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from metatrain.types import Executor


@contextmanager
def _in_process(worker: Worker) -> Iterator[Executor]:
    """Compute with `worker` itself."""
    with closing(InProcess(worker)) as executor:
        yield executor


@contextmanager
def _on_ray(worker: Worker) -> Iterator[Executor]:
    """Compute in Ray actors, on a cluster that is joined, started here, or already there, as in a trial of a search."""
    import ray  # takes seconds: not for runs that do without

    from cluster.connection import connect_ray
    from cluster.executor import RayExecutor

    say = partial(print, file=sys.stderr, flush=True)
    with connect_ray(worker.config.executor):
        # A trial's workers use the bundles of its placement group; elsewhere there is none.
        group = ray.util.get_current_placement_group()
        executor = None
        try:
            with deferred_signals():  # cut short, it would leave a thread that asks Ray while Ray is shut down
                executor = RayExecutor(worker.config, group, say=say)
            yield executor
        finally:
            if executor is not None:
                executor.close()


EXECUTORS: Mapping[str, Callable[[Worker], AbstractContextManager[Executor]]] = {
    "in_process": _in_process,
    "ray": _on_ray,
    "ray_train": _on_ray,  # training itself is by `cluster.train_ranks`; all else has no steps to take
}
"""By the name under `executor.name`."""


def open_executor(worker: Worker) -> AbstractContextManager[Executor]:
    """Open the executor that `worker.config` names, for the duration of a block. `worker` is this process's own."""
    return EXECUTORS[worker.config.executor.name](worker)


@contextmanager
def one_cluster() -> Iterator[Callable[[Worker], AbstractContextManager[Executor]]]:
    """Yield `open_executor` for several workers in turn: Ray, which takes seconds to start, stays up between them."""
    with ExitStack() as kept:

        def open_next(worker: Worker) -> AbstractContextManager[Executor]:
            if worker.config.executor.on_ray:
                from cluster.connection import connect_ray

                kept.enter_context(connect_ray(worker.config.executor))
            return open_executor(worker)

        yield open_next
