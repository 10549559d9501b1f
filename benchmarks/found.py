"""Compare the best configuration of a search with a shipped one, trained equally long and tested on the same tasks.

    python -m benchmarks found sinusoid DIR/best.yaml configs/sinusoid-maml.yaml 2000 [key=value…]

trains both for 2000 steps with seeds 0, 1 and 2 (or `--seeds 1`), two runs at a time, and scores the best state of
each run (by validation) on the same 1000 validation and 1000 test tasks.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from metatrain.config.best_params import best_params
from metatrain.config.load import as_plain, load_config
from metatrain.evaluation.evaluate import make_shards
from metatrain.evaluation.intervals import student_t
from metatrain.settings import ExecutorSettings, TrackingSettings
from metatrain.setup import prepare, set_up
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.trainer import new_run, run
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from metatrain.types import Params, ShardRequest
from metatrain.yaml_config import flatten
from tasks.types import Split

COLUMNS = ["tasks", "seed", "found", "shipped", "difference (interval)", "minutes"]
CHANGED = ("algorithm.", "model.", "outer.", "tasks.train.")
SPLITS: tuple[Split, ...] = ("validation", "test")
TASKS = 1000
STUDENT = 4.303
"""The 97.5 % quantile of Student's t with two degrees of freedom."""


class Trained(NamedTuple):
    """Score of one run on each task of each split, and its training minutes."""

    scores: dict[Split, NDArray[np.float64]]
    minutes: float


def main(argv: list[str]) -> None:
    """Train and compare the runs, and write the part "found-NAME"."""
    parser = argparse.ArgumentParser(prog="benchmarks found", description=__doc__)
    for name in ("name", "found", "other", "steps"):
        parser.add_argument(name)
    parser.add_argument("overrides", nargs="*", help="settings for both")
    parser.add_argument("--seeds", type=int, default=3, choices=(1, 3))
    options = parser.parse_intermixed_args(argv)
    seeds, files = range(options.seeds), (options.found, options.other)
    runs = [(file, options.steps, options.overrides, seed) for seed in seeds for file in files]
    with ProcessPoolExecutor(2) as pool:
        done = list(pool.map(train_and_score, *zip(*runs, strict=True)))
    pairs = list(zip(done[::2], done[1::2], strict=True))
    rows = [row for split in SPLITS for row in compare(pairs, split)]
    whole = flatten(as_plain(load_config(Path(options.found))))
    settings = {key: value for key, value in whole.items() if key.startswith(CHANGED)}
    title = f"Best configuration of a search: {options.name}, {options.steps} steps"
    results.write(f"found-{options.name}", title, COLUMNS, rows, _notes(options), {"settings": settings})


def _notes(options: argparse.Namespace) -> list[str]:
    given = [setting for setting in options.overrides if not setting.startswith("tasks.root=")]
    set_for_both = f" Set for both: {', '.join(given)}." if given else ""
    return [
        f"Against {Path(options.other).name}, trained for as many steps: the best state by validation, on the same "
        f"{TASKS} "
        f"tasks.{set_for_both} Mean (half its 95 % interval).",
        "The difference is paired by task within a seed. For three seeds together there are two intervals: by task "
        "(for "
        "these seeds) and by seed (Student's t of three).",
        "Minutes: per run in its own process, two at a time; inner steps, queries and networks differ.",
    ]


def train_and_score(name: str, steps: str, overrides: Sequence[str], seed: int) -> Trained:
    """Train in process for `steps` steps and score the best state by validation."""
    config = load_config(Path(name), [f"outer.steps={steps}", f"seed={seed}", *overrides])
    with TemporaryDirectory() as folder:
        config = replace(
            config,
            runs=replace(config.runs, root=folder),
            tracking=TrackingSettings(uri=None),
            evaluation=replace(config.evaluation, baselines=False, tasks=2, validation_tasks=200, every=int(steps)),
            executor=ExecutorSettings(shard_size=config.executor.shard_size),
        )
        prepare(config)
        worker = set_up(config)
        home = new_run(worker.config)
        began = time.monotonic()
        run(worker, InProcess(worker), CompositeRecorder(), home)
        minutes = (time.monotonic() - began) / 60
        params, _, _ = best_params(home)
        return Trained({split: score_tasks(worker, params, split) for split in SPLITS}, minutes)


def score_tasks(worker: Worker, params: Params, split: Split) -> NDArray[np.float64]:
    """Return the score of each task after the last inner step: [TASKS]."""
    executor = InProcess(worker)
    shards = make_shards(0, TASKS, worker.config.executor.shard_size)
    parts = [part.values for part in executor.map(ShardRequest("score", split, 0), params, shards)]
    executor.close()
    name = "accuracy" if "accuracy" in parts[0] else "mse"
    return np.concatenate([part[name][:, -1].double().numpy() for part in parts])


def compare(pairs: Sequence[tuple[Trained, Trained]], split: Split) -> list[list[Any]]:
    """Return a row per seed and one for all: found, other, and found minus other, paired by seed and task."""
    both = [(ours.scores[split], theirs.scores[split]) for ours, theirs in pairs]
    differences = np.stack([ours - theirs for ours, theirs in both])
    within = differences.std(axis=1, ddof=1) / np.sqrt(differences.shape[1])
    rows: list[list[Any]] = []
    for seed, ((ours, theirs), pair) in enumerate(zip(both, pairs, strict=True)):
        minutes = " and ".join(f"{one.minutes:.1f}" for one in pair)
        rows.append([split, seed, format_mean(ours), format_mean(theirs), format_mean(ours - theirs), minutes])
    if len(pairs) == 1:
        return rows
    together = student_t(differences.shape[1] - 1) * float(np.sqrt((within**2).sum())) / len(pairs)
    spread = STUDENT * float(differences.mean(axis=1).std(ddof=1)) / np.sqrt(len(pairs))
    means = [f"{np.mean([pair[which].mean() for pair in both]):.4f}" for which in (0, 1)]
    rows.append([split, "all", *means, f"{differences.mean():.4f} ({together:.4f}; {spread:.4f})", None])
    return rows


def format_mean(values: NDArray[np.float64]) -> str:
    """Format the mean (half its 95 % interval)."""
    return f"{values.mean():.4f} ({student_t(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5:.4f})"
