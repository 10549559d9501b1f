"""What a search has found, against a configuration that was there already: trained alike, on the same tasks.

    python -m benchmarks.found FOUND.yaml OTHER.yaml 2000 [key=value…]      both for 2000 steps, with seeds 0, 1 and 2

Prints JSON: on validation and on test tasks each seed's scores, and the mean difference over all pairs of (seed, task)
with two 95 % intervals: over tasks, for these seeds (`ci95_tasks`), and over seeds (`ci95_seeds`, Student's t).
"""

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metatrain.config import load_config
from metatrain.driver import new_run, run
from metatrain.evaluation import shards_of
from metatrain.executor import InProcess
from metatrain.learner import best_params
from metatrain.preparation import prepare, settled
from metatrain.recorders import Silent
from metatrain.settings import ExecutorSettings, TrackingSettings
from metatrain.types import Job, Params
from metatrain.worker import Worker
from tasks.types import Split

SEEDS = (0, 1, 2)
SPLITS: tuple[Split, ...] = ("validation", "test")
TASKS = 1000
STUDENT = 4.303
"""The 97.5 % quantile of Student's t with two degrees of freedom."""


class Trained(NamedTuple):
    """One run: its score on each task of each split, and how long it trained."""

    scores: dict[Split, NDArray[np.float64]]
    minutes: float


def main(arguments: Sequence[str]) -> None:
    """Train six runs, two at a time, and compare."""
    found, other, steps, *overrides = arguments
    asked = [(name, steps, overrides, seed) for seed in SEEDS for name in (found, other)]
    with ProcessPoolExecutor(2) as pool:
        done = list(pool.map(trained, *zip(*asked, strict=True)))
    pairs = list(zip(done[::2], done[1::2], strict=True))
    minutes = [[round(one.minutes, 2) for one in pair] for pair in pairs]
    said: dict[str, Any] = {"found": found, "other": other, "steps": int(steps), "minutes": minutes}
    print(json.dumps(said | {split: compared(pairs, split) for split in SPLITS}, indent=1))


def trained(name: str, steps: str, overrides: Sequence[str], seed: int) -> Trained:
    """A run of `steps` steps in process, and its best state by validation, judged."""
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
        config = settled(config)
        worker, home = Worker(config, torch.device("cpu")), new_run(config)
        began = time.monotonic()
        run(config, InProcess(worker), Silent(), home)
        minutes = (time.monotonic() - began) / 60
        params, _, _ = best_params(home)
        return Trained({split: scores(worker, params, split) for split in SPLITS}, minutes)


def scores(worker: Worker, params: Params, split: Split) -> NDArray[np.float64]:
    """After the last inner step, of each task. [TASKS]"""
    executor = InProcess(worker)
    shards = shards_of(0, TASKS, worker.config.executor.shard_size)
    parts = [part.values for part in executor.map(Job("score", split, 0), params, shards)]
    executor.close()
    name = "accuracy" if "accuracy" in parts[0] else "mse"
    return np.concatenate([part[name][:, -1].double().numpy() for part in parts])


def compared(pairs: Sequence[tuple[Trained, Trained]], split: Split) -> dict[str, Any]:
    """Found minus other, paired by seed and task."""
    both = [(ours.scores[split], theirs.scores[split]) for ours, theirs in pairs]
    differences = np.stack([ours - theirs for ours, theirs in both])
    within = differences.std(axis=1, ddof=1) / np.sqrt(differences.shape[1])
    each = [
        {"seed": seed, "found": told(ours), "other": told(theirs), "difference": told(ours - theirs)}
        for seed, (ours, theirs) in zip(SEEDS, both, strict=True)
    ]
    together = 1.96 * float(np.sqrt((within**2).sum())) / len(pairs)
    spread = STUDENT * float(differences.mean(axis=1).std(ddof=1)) / np.sqrt(len(pairs))
    means = {"difference": round(float(differences.mean()), 5), "ci95_tasks": round(together, 5)}
    return {"runs": each, **means, "ci95_seeds": round(float(spread), 5)}


def told(values: NDArray[np.float64]) -> list[float]:
    """[mean, half its 95 % interval]."""
    return [round(float(values.mean()), 5), round(1.96 * float(values.std(ddof=1)) / len(values) ** 0.5, 5)]


if __name__ == "__main__":
    main(sys.argv[1:])
