"""Measure the minutes until MAML on Omniglot, 5-way 1-shot, reaches a validation accuracy on one device.

The test tasks are then scored once. It needs torch, numpy and pyarrow only.

    python -m benchmarks minutes --root FOLDER --device cuda --accuracy 0.987
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from metatrain.algorithms.optimization.maml import MAML
from metatrain.evaluation.evaluate import Evaluation, evaluate, make_shards
from metatrain.models import Conv4
from metatrain.settings import (
    Config,
    EngineSettings,
    EvaluationSettings,
    ExecutorSettings,
    OuterSettings,
    PartNames,
    Tasks,
)
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state, train
from metatrain.training.worker import Worker
from metatrain.types import Params, ShardRequest
from tasks.sources.omniglot import Omniglot
from tasks.types import EpisodeShape, Split

_SHARD = 200
"""Tasks scored together."""


def main(argv: list[str]) -> None:
    """Train, and write the part "minutes"."""
    data = os.environ.get("METATRAIN_DATA")
    parser = argparse.ArgumentParser(prog="python -m benchmarks minutes", description=__doc__)
    parser.add_argument("--root", default=data and str(Path(data) / "omniglot"), help="Omniglot's folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--accuracy", type=float, default=0.987)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--every", type=int, default=500, help="steps between validations")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many minutes")
    parser.add_argument("--compile", choices=["on", "off"], default="on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    config = config_of(options)
    executor = InProcess(Worker(config, torch.device(options.device)))
    began = time.monotonic()
    executor.compile(make_shards(0, config.outer.tasks_per_step, config.executor.shard_size))
    compiled = time.monotonic() - began
    state, curve = initial_state(executor.worker.initial(), config.outer), []
    for _ in train(state, executor, config.outer, config.executor.shard_size):
        if state.step % options.every == 0 or state.step == config.outer.steps:
            found = score(executor, "validation", state.params, config.evaluation.validation_tasks)
            curve.append([state.step, (time.monotonic() - began) / 60, found.value, found.ci95])
            print(f"step {state.step}: {100 * found.value:.2f} ± {100 * found.ci95:.2f} %", flush=True)
            if found.value >= options.accuracy or curve[-1][1] > options.minutes:
                break
    minutes = (time.monotonic() - began) / 60
    found = score(executor, "test", state.params, config.evaluation.tasks)
    executor.close()
    write_results(options, state.step, minutes, compiled, found, curve)


def write_results(
    options: argparse.Namespace, steps: int, minutes: float, compiled: float, found: Evaluation, curve: list[Any]
) -> None:
    """Write the table and the curve."""
    columns = ["device", "seed", "steps", "minutes", "of these compiling", "test accuracy %", "± %", "tasks"]
    row: list[Any] = [options.device, options.seed, steps, round(minutes, 1), round(compiled / 60, 1)]
    row += [round(100 * found.value, 2), round(100 * found.ci95, 2), found.tasks]
    notes = [
        "MAML, conv4-64 with strides, α 0.4, 1 step in training and 3 in evaluation, 32 tasks a step, Adam 1e-3, "
        f"transductive; until {100 * options.accuracy:.1f} % of validation queries, scored every {options.every} steps."
    ]
    series = {"validation": [[minutes, 100 * value] for _, minutes, value, _ in curve]}
    plot = {"file": "minutes.png", "title": "Omniglot 5w1s, MAML", "x": "minutes", "y": "accuracy %", "series": series}
    results.write("minutes", "Minutes to an accuracy", columns, [row], notes, {"curve": curve, "plots": [plot]})


def config_of(options: argparse.Namespace) -> Config:
    """Return the settings of Finn et al. 2017, §5.2, without reading a file, which would need pydantic and yaml."""
    many = options.device != "cpu"
    return Config(
        tasks=Tasks(Omniglot(options.root), EpisodeShape(5, 1, 15), EpisodeShape(5, 1, 15)),
        model=Conv4(width=64, downsample="stride"),
        algorithm=MAML(0.4, 1),
        names=PartNames("omniglot", "conv4", "maml"),
        seed=options.seed,
        engine=EngineSettings(vectorize="vmap" if many else "loop", compile=options.compile),
        outer=OuterSettings(lr=1e-3, steps=options.steps, tasks_per_step=32),
        executor=ExecutorSettings(shard_size=32, gpus_per_worker=1 if many else 0),
        evaluation=EvaluationSettings(tasks=1000, validation_tasks=600, inner_steps=3),
    )


def score(executor: InProcess, split: Split, params: Params, tasks: int) -> Evaluation:
    """Score held-out tasks."""
    shard = _SHARD if executor.worker.device.type == "cuda" else 4
    request = ShardRequest("score", split, 0)
    return evaluate(executor, request, params, tasks, shard, executor.worker.is_transductive(request, params))
