"""Measure a run's time per step and memory as its steps grow, and the commands that look at it or go on with it.

The run is trained in a process of its own, as `metatrain train` does it: metrics of every step to metrics.jsonl and to
MLflow on SQLite, validations and checkpoints at the intervals of configs/sinusoid-maml.yaml. A recorder beside the
others notes the clock at each step and memory at some.
"""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.commands import Measured, measure_command, private_mib

CONFIG = Path(__file__).parents[1] / "configs" / "sinusoid-maml.yaml"
WINDOW = 100
"""Steps on either side of a step, over which its time is the median."""
_AFTER = 10
"""Steps by which a finished run is extended, to measure how it is resumed."""
CHEAP = (
    *(
        "algorithm.name=fomaml",
        "model.depth=1",
        "tracking.every=1",
        "outer.tasks_per_step=4",
        "evaluation.tasks=10",
        "evaluation.baselines=false",
    ),
    *("evaluation.from_scratch_tasks=0", "runs.root=runs"),
)
EXECUTORS: dict[str, tuple[str, ...]] = {
    "in process": ("executor.shard_size=4",),
    "Ray, 2 workers": ("executor.name=ray", "executor.workers=2", "executor.shard_size=2"),
}
COLUMNS = [
    *("executor", "about step", "ms (median)", "CPU ms of the driver", "driver, MiB"),
    *("workers, MiB each", "metrics.jsonl, MiB", "mlflow.db, MiB"),
]
COMMAND_COLUMNS = ["command", "steps of the run", "s", "CPU s", "peak MiB"]


class Sample(NamedTuple):
    """Memory at a step."""

    step: int
    driver: float
    workers: tuple[float, ...]
    metrics: float
    database: float


class Trained(NamedTuple):
    """What a run's process sends back: its folder, [steps, 2] the clock's and the processor's seconds, memory."""

    run_dir: str
    seconds: np.ndarray[Any, Any]
    samples: list[Sample]


class StepProbe:
    """Recorder that notes the time of every step, and memory after some. files: whose sizes it notes."""

    def __init__(self, steps: int, at: Sequence[int], pids: Sequence[int], files: tuple[Path, Path]) -> None:
        # Filled, so that it does not grow by pages as the run goes on.
        self.seconds = np.full((steps + 1, 2), np.nan)
        self.samples: list[Sample] = []
        self._at, self._pids, self._files = set(at), pids, files

    def start(self, step: int, total: int) -> None:
        """Do nothing."""

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the time, where these are the metrics of training."""
        if "train/loss" not in metrics:
            return
        self.seconds[step] = time.perf_counter(), time.process_time()
        if step in self._at:
            sizes = (path.stat().st_size / 2**20 if path.exists() else 0.0 for path in self._files)
            self.samples.append(Sample(step, private_mib(), tuple(map(private_mib, self._pids)), *sizes))

    def progress(self, stage: str, done: int, total: int) -> None:
        """Do nothing."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def event(self, step: int, kind: str, text: str) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self, status: str) -> None:
        """Do nothing."""


def decades(steps: int) -> list[int]:
    """Return 100, 1000, … up to `steps`, which is the last."""
    found = [10**power for power in range(2, 12) if 10**power < steps]
    return [*found, steps]


def train(folder: Path, steps: int, executor: str) -> Trained:
    """Train a run of so many steps in `folder`, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train, (folder, steps, executor))


def _train(folder: Path, steps: int, executor: str) -> Trained:
    import os

    from cluster.executors import open_executor
    from metatrain import runs
    from metatrain.config.load import load_config
    from metatrain.setup import prepare, recorders, set_up
    from metatrain.tracking.jsonl import CompositeRecorder
    from metatrain.trainer import new_run, run

    os.chdir(folder)
    config = load_config(str(CONFIG), [*CHEAP, *EXECUTORS[executor], f"outer.steps={steps}"])
    prepare(config)
    worker = set_up(config)
    with open_executor(worker) as executed:
        home = new_run(worker.config, worker.given)
        pids = executed.pids() if hasattr(executed, "pids") else []
        probe = StepProbe(steps, decades(steps), pids, (home.metrics, Path("mlflow.db")))
        recorder = CompositeRecorder([recorders(worker.config, home), probe])
        with runs.lock_run(home), closing(_Closing(recorder)):
            run(worker, executed, recorder, home)
    return Trained(str(Path(home.where).absolute()), probe.seconds, probe.samples)


class _Closing:
    """Close a recorder as that of a finished run."""

    def __init__(self, recorder: Any) -> None:
        self._recorder = recorder

    def close(self) -> None:
        self._recorder.close("finished")


def rows_of(executor: str, trained: Trained) -> list[list[Any]]:
    """Return a row for each step at which memory was noted."""
    each = np.diff(trained.seconds, axis=0)
    rows = []
    for sample in trained.samples:
        near = each[max(sample.step - WINDOW, 20) : sample.step + WINDOW]
        wall, cpu = 1000 * np.nanmedian(near, axis=0)
        workers = ", ".join(f"{mib:.1f}" for mib in sample.workers) or "–"
        sizes = [round(sample.metrics, 2), round(sample.database, 2)]
        rows.append([executor, sample.step, round(wall, 3), round(cpu, 3), f"{sample.driver:.1f}", workers, *sizes])
    return rows


def measure_commands(run_dir: str, steps: int, folder: Path) -> list[list[Any]]:
    """Return rows of the commands that read a run of so many steps, and of going on with it for a few more."""
    commands = {
        "status RUN": ["status", run_dir],
        "report RUN": ["report", run_dir],
        f"train --resume RUN, {_AFTER} steps more": [
            *("train", "--resume", run_dir, f"outer.steps={steps + _AFTER}"),
        ],
    }
    rows = []
    for name, words in commands.items():
        found: Measured = measure_command(words, folder)
        rows.append([name, steps, round(found.seconds, 2), round(found.cpu, 2), round(found.mib)])
        print(rows[-1], flush=True)
    return rows
