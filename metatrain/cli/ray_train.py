"""Train a run on ranks of Ray Train: `metatrain train` with `executor.name=ray_train`.

Every rank trains in step with the others; rank 0 alone has the run's folder, records, and tells the command, which
shows the progress. Whatever ends the ranks before their time, they begin again from the newest checkpoint.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metatrain import runs
from metatrain.config.extension import EXTENDED, extend_run
from metatrain.errors import Diverged, RunFailed, RunLost, TaskFailed, WorkersLost
from metatrain.evaluation.evaluate import Evaluation, make_shards
from metatrain.report.collect import newest_step
from metatrain.runs.locations import open_run, release_run
from metatrain.runs.messages import failure_message
from metatrain.settings import Config
from metatrain.setup import recorders, tracked
from metatrain.tracking.console import ProgressRecorder
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.trainer import RunResult, run
from metatrain.training.all_reduce import AllReduce
from metatrain.training.devices import device_for
from metatrain.training.initial import Initial
from metatrain.training.memory import MEMORY, Memory, compare_memory
from metatrain.training.ranks import Ranks
from metatrain.training.worker import Worker
from metatrain.types import RunStatus

if TYPE_CHECKING:
    from cluster.train_ranks import Rank

RANKS = "ranks"
"""The kind of the event that says which processes train."""


class RankJob(NamedTuple):
    """What every rank trains: the resolved configuration, the parameters to begin with, the run and where it is.

    predicted: the memory of a rank, where it is known.
    """

    config: Config
    given: Initial | None
    home: runs.Run
    where: str
    take_over: bool
    predicted: Memory | None


class Outcome(NamedTuple):
    """What rank 0 hands back."""

    result: RunResult
    compile_seconds: float


Tested = Callable[[Sequence[Evaluation]], None]


def train_on_ranks(
    worker: Worker,
    predicted: Memory | None,
    home: runs.Run,
    take_over: bool,
    stop: Callable[[], bool],
    progress: ProgressRecorder,
    tested: Tested,
) -> Outcome:
    """Train the run `home` on the ranks of a connected cluster. tested: called with the results.

    Raises RunFailed with the command that resumes the run, RunLost, and ValueError or OSError for a wrong request.
    """
    from cluster.train_ranks import run_ranks

    where = home.where if home.storage is not None else str(Path(home.where).absolute())
    kept = runs.Run(home.path, home.run_id, home.created)
    job = RankJob(worker.config, worker.given, kept, where, take_over, predicted)
    shown: Mapping[str, Callable[..., None]] = {
        name: getattr(progress, name) for name in ("start", "record", "progress", "event", "close")
    } | {"tested": tested}

    def receive(message: tuple[str, Sequence[Any]]) -> None:
        name, values = message
        shown[name](*values)

    try:
        outcome = run_ranks(worker.config.executor, partial(train_rank, job), stop, receive)
    except WorkersLost as error:
        progress.close("failed")
        _note_failure(worker.config, home)
        raise RunFailed(failure_message(error, home)) from error
    if isinstance(outcome, Exception):
        raise outcome
    assert isinstance(outcome, Outcome)
    return outcome


def _note_failure(config: Config, home: runs.Run) -> None:
    """Tell MLflow that the run has failed, which no rank can tell any more."""
    tracker = CompositeRecorder(tracked(config, home))
    with suppress(OSError, ValueError):  # what ended the run is told of, not this
        tracker.start(newest_step(home), config.outer.steps)
        tracker.close("failed")


def train_rank(job: RankJob, rank: "Rank") -> Outcome | Exception | None:
    """Train on one rank; return what came of it on rank 0: an outcome, or what ended the run for good.

    None: rank 0 has paused, with a checkpoint, as another number of ranks is about to start.
    WorkersLost: another rank has gone, so that all are to begin again.
    """
    gpus = job.config.executor.gpus_per_worker
    device = device_for(gpus)
    try:
        with Ranks(device if gpus >= 1 else device_for(0)) as ranks:
            worker = Worker(job.config, device)
            worker.given = job.given
            with closing(AllReduce(worker, ranks)) as executor:
                compile_seconds = _compile(worker.config, executor)
                processes = ranks.gather(lambda: f"{os.getpid()} on {socket.gethostname()}")
                if rank.leads:
                    result = _lead(job, rank, executor, f"{ranks.size}: {', '.join(processes)}")
                    return None if result is None else Outcome(result, compile_seconds)
                nothing = CompositeRecorder([])
                run(worker, executor, nothing, job.home, lambda: ranks.once(rank.stop), once=ranks.once)
    except WorkersLost:
        raise
    except (RunFailed, RunLost, TaskFailed, Diverged, ValueError, OSError) as error:
        return error  # of rank 0; the others' is that of a rank, which it knows
    return None


def _compile(config: Config, executor: AllReduce) -> float:
    """Compile the inner loop, if the engine compiles; return the seconds it took."""
    began = time.monotonic()
    if config.engine.compile == "on":
        executor.compile(make_shards(0, config.outer.tasks_per_step, config.executor.shard_size))
    return round(time.monotonic() - began, 3)


def _lead(job: RankJob, rank: "Rank", executor: AllReduce, processes: str) -> RunResult | None:
    """Train on rank 0, which owns the run's folder: it locks, records and saves. None: it has paused."""
    config, ranks = executor.worker.config, executor.ranks
    home = open_run(job.where)
    # A rank 0 that was killed may have left a heartbeat in object storage: it was ours.
    with runs.lock_run(home, job.take_over or rank.attempt > 1, heartbeat_s=config.runs.heartbeat):
        extended = extend_run(home, config, newest_step(home))
        events = [*([(EXTENDED, extended)] if extended else []), (RANKS, processes)]
        recorder = recorders(config, home, _Telling(rank.tell))

        def tested(results: Sequence[Evaluation]) -> None:
            rank.tell(("tested", (list(results),)))

        def ends() -> bool:
            return rank.stop() or (rank.pause() and executor.stepped)

        try:
            stop = partial(ranks.once, ends)
            result = run(executor.worker, executor, recorder, home, stop, tested, events, ranks.once)
            paused = not result.finished and not rank.stop()
            if not paused:
                used = result.executor.get("peak_mib", {})
                recorder.event(result.steps, MEMORY, compare_memory(job.predicted, False, used))
                recorder.close("finished" if result.finished else "interrupted")
            home.commit()
        except (Diverged, TaskFailed, OSError) as error:
            with suppress(OSError):  # the recorder may be what failed
                recorder.close("failed")
            raise RunFailed(failure_message(error, home)) from error
    release_run(home)
    return None if paused else result


class _Telling:
    """Recorder of rank 0 that has the command show what is recorded."""

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell

    def start(self, step: int, total: int) -> None:
        self._tell(("start", (step, total)))

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        self._tell(("record", (step, dict(metrics))))

    def progress(self, stage: str, done: int, total: int) -> None:
        self._tell(("progress", (stage, done, total)))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing: files are not shown."""

    def event(self, step: int, kind: str, text: str) -> None:
        self._tell(("event", (step, kind, text)))

    def flush(self) -> None:
        """Do nothing: a message is sent at once."""

    def close(self, status: RunStatus) -> None:
        self._tell(("close", (status,)))
