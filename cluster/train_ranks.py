"""Run a function on ranks that Ray Train starts, restarts after a fault and, within bounds, adds and removes.

Train's part is the processes, their number and their `torch.distributed` group. Checkpoints, records and the decision
to stop are ours: nothing is reported to Train, and what it stores is removed at the end. Train changes the number of
ranks by ending all and starting others, without notice; here they pause first, so that no step is taken twice.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.connection import check_ray
from cluster.rank_contact import Contact, PauseRanks
from metatrain.errors import WorkersLost
from metatrain.job_secrets import adopt_secrets, held_secrets
from metatrain.settings import ExecutorSettings, WorkerRange

MOST_FAILURES = 16
"""Faults of ranks, such as a process that was killed, in one command before it gives up; preemptions do not count."""
LOOK_FOR_ROOM_S = 60.0
"""Seconds after a start of the ranks, and from then on, after which Train looks whether more or fewer have room."""
_LOOK_S = 0.3
_ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""Train calls its function in a thread, to which glibc gives a heap of its own, of at most 64 MiB: every larger tensor
would be new memory, with a page fault per 4 KiB. The main thread's heap has no such bound."""
_IN_TRIAL_FOLDER = "RAY_CHDIR_TO_TRIAL_DIR"
"""The variable that has Train start ranks in a folder of its own, where relative paths would not be ours."""


class Rank(NamedTuple):
    """What a rank is given beside its process group. Only rank 0 has more than `leads`.

    attempt: 1, 2, … of starts of the ranks; stop: whether to end after this step; pause: whether to do so because
    another number of ranks is about to start; tell: sends a message to the command.
    """

    leads: bool
    attempt: int
    stop: Callable[[], bool]
    pause: Callable[[], bool]
    tell: Callable[[Any], None]


def run_ranks(
    settings: ExecutorSettings,
    function: Callable[[Rank], Any],
    stop: Callable[[], bool],
    receive: Callable[[Any], None],
) -> Any:
    """Call `function` on every rank of a connected cluster and return what it returned on rank 0, None for a pause.

    receive: is given what rank 0 tells. When a rank is lost, all are started again, `MOST_FAILURES` times.
    WorkersLost: they were lost more often, or rank 0 was silent for `executor.deadline` seconds.
    """
    # On the command's node, as Train's part is: on another one it would be lost with that.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    contact: Any = ray.remote(Contact).options(num_cpus=0, scheduling_strategy=here).remote()
    failures: list[BaseException] = []
    with tempfile.TemporaryDirectory(prefix="metatrain-train-", ignore_cleanup_errors=True) as storage:
        pausing = PauseRanks(contact)
        trainer = _trainer(settings, partial(_run_rank, function, contact, held_secrets()), pausing, storage)
        # Not in the main thread, where Train handles SIGINT itself; a second signal does not wait for it.
        fit = threading.Thread(target=_fit, args=(trainer, failures), daemon=True)
        fit.start()
        heard = time.monotonic()
        while True:
            check_ray()
            ended = not fit.is_alive()
            messages, done, outcome = ray.get(contact.look.remote(stop()))
            heard = time.monotonic() if messages else heard
            for message in messages:
                if message is not None:
                    receive(message)
            if ended:
                break
            if not done and time.monotonic() - heard > settings.deadline:
                raise WorkersLost(f"no answer of rank 0 for {settings.deadline:g} s: see `ray status`")
            time.sleep(_LOOK_S)
    if not done:
        reason = " ".join(str(failures[0] if failures else "they ended").split())[-300:]
        raise WorkersLost(f"the ranks failed more than {MOST_FAILURES} times ({reason}): see Ray's logs")
    return outcome


def _fit(trainer: TorchTrainer, failures: list[BaseException]) -> None:
    try:
        trainer.fit()
    except (TrainingFailedError, RayError) as error:
        failures.append(error)


def _trainer(
    settings: ExecutorSettings, function: Callable[[], None], pausing: PauseRanks, storage: str
) -> TorchTrainer:
    """Return the trainer of these ranks; each has one core, and its GPUs."""
    workers = settings.workers
    number: Any = (workers.min, workers.max) if isinstance(workers, WorkerRange) else workers
    gpus = settings.gpus_per_worker
    os.environ[_IN_TRIAL_FOLDER] = "0"
    return TorchTrainer(
        function,
        torch_config=TorchConfig(backend=backend(settings), timeout_s=int(settings.deadline)),
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # of Train V2, which typing does not see
            num_workers=number,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
            elastic_resize_monitor_interval_s=LOOK_FOR_ROOM_S,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name="ranks",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=MOST_FAILURES),
            worker_runtime_env={"env_vars": _ONE_HEAP},
            callbacks=[pausing],  # type: ignore[list-item]  # Train takes its internal ones too
        ),
    )


def backend(settings: ExecutorSettings) -> str:
    """Return how ranks exchange values: by NCCL where each has a GPU of its own, which it needs; else by gloo."""
    return "cpu:gloo,cuda:nccl" if settings.gpus_per_worker >= 1 else "gloo"


def _run_rank(function: Callable[[Rank], Any], contact: Any, secrets: Mapping[str, str]) -> None:
    """Call `function` in the process of a rank; hand over what it returns on rank 0."""
    adopt_secrets(secrets)
    if ray.get(contact.is_done.remote()):
        return
    if get_context().get_world_rank() > 0:
        function(Rank(False, 0, lambda: False, lambda: False, lambda message: None))
        return
    attempt = ray.get(contact.begin.remote())
    with _watched(contact) as (stopping, pausing):
        outcome = function(Rank(True, attempt, stopping.is_set, pausing.is_set, contact.tell.remote))
    ray.get(contact.end.remote(outcome))


@contextmanager
def _watched(contact: Any) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Yield events that are set when to stop and to pause; ask, and so show life, in a thread of its own."""
    stopping, pausing, ended = threading.Event(), threading.Event(), threading.Event()

    def watch() -> None:
        with suppress(RayError):  # the command has gone: Ray ends this process
            while not ended.wait(_LOOK_S):
                for event, wanted in zip((stopping, pausing), ray.get(contact.asked.remote()), strict=True):
                    if wanted:
                        event.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield stopping, pausing
    finally:
        ended.set()
        thread.join()
