"""Measure the memory and time of a large network's meta-gradient with and without activation checkpointing.

Each row is a process of its own on one thread, eager: peak resident memory (VmHWM, reset before) above what was
resident before the second gradient, the largest sum of tensors alive at once, and seconds of a gradient. Then what
`metatrain train --dry-run` predicts of a worker, beside the peak resident memory of a process that takes such a step.
"""

import argparse
import json
import subprocess
import sys
import time

import torch

from benchmarks import cases, results
from benchmarks.contender_process import peak
from benchmarks.metatrain_contender import compute_with
from benchmarks.peak import peak_bytes
from metatrain.algorithms import MAML
from metatrain.engine import Engine, checkpoint_blocks
from metatrain.training.devices import keep_freed_memory

MIB = 2**20
CHECKPOINTED = ("resnet12-1-1", "omniglot-5-1")
PREDICTED = (("sinusoid-5-16", "off"), ("omniglot-5-8", "off"), ("resnet12-1-2", "off"), ("resnet12-1-2", "on"))
"""Cases, and `engine.activation_checkpointing`."""


def main(argv: list[str]) -> None:
    """Measure, and write the parts "large-checkpointing" and "large-prediction"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks large", description=__doc__)
    parser.add_argument("--child", nargs=3, help="measure one row and print it as JSON: WHAT CASE on|off")
    child = parser.parse_args(argv).child
    if child is not None:
        what, name, setting = child
        print(json.dumps(_MEASUREMENTS[what](name, setting)))
        sys.exit(0)
    _write_checkpointing([(name, setting) for name in CHECKPOINTED for setting in ("off", "on")])
    _write_prediction()


def _write_checkpointing(wanted: list[tuple[str, str]]) -> None:
    rows = [[name, setting, *_ask("gradient", name, setting)] for name, setting in wanted]
    columns = ["case", "activation checkpointing", "resident (MiB)", "tensors (MiB)", "seconds"]
    notes = [
        "resnet12-1-1: ResNet-12 (8.0 million parameters), 84×84 in colour, one inner step, one task of 5 ways, 1 "
        "shot, 5 queries. omniglot-5-1: conv4-64, five inner steps. Eager, one thread; seconds are the least of three.",
        "Resident: peak of a second gradient above what was resident before. Tensors: the largest sum alive at once.",
        "conv4 halves its maps from block to block, so that the first block is most of the graph: nothing is gained.",
    ]
    title = "Memory of a meta-gradient by activation checkpointing"
    results.write("large-checkpointing", title, columns, rows, notes, {})


def _write_prediction() -> None:
    rows = [[name, setting, *_ask("step", name, setting)] for name, setting in PREDICTED]
    columns = ["case", "activation checkpointing", "predicted (MiB)", "used (MiB)", "ratio", "above the start, ratio"]
    notes = [
        "In process, eager, shards of 4; used: the peak resident memory of the process after two outer steps. The last "
        "column leaves out what the process held before its first gradient, of both.",
        "What is missing are gaps of the allocator, and code and copies of the libraries of convolutions.",
    ]
    results.write("large-prediction", "Memory of a worker: predicted and used", columns, rows, notes, {})


def _ask(what: str, name: str, setting: str) -> list[float]:
    """Return the numbers of a row, measured by a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "large", "--child", what, name, setting]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600)
    found: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{what:9} {name:14} {setting:3}  {found}", flush=True)
    return found


def _gradient(name: str, setting: str) -> list[float]:
    """Return MiB resident, MiB of tensors, and seconds of one gradient."""
    torch.set_num_threads(1)
    keep_freed_memory()
    case = cases.find_case(name)
    model, tasks = cases.model_of(case), cases.tasks_of(case)
    if setting == "on":
        checkpoint_blocks(model.body, name)
    algorithm = MAML(case.inner_lr, case.inner_steps)
    gradient = compute_with(algorithm, case, model.initial(), tasks, Engine("loop"), model)
    gradient()
    resident = peak(gradient, "")["peak_mib"]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        gradient()
        seconds.append(time.perf_counter() - began)
    return [round(resident), round(peak_bytes(gradient) / MIB), round(min(seconds), 2)]


def _step(name: str, setting: str) -> list[float]:
    """Return MiB predicted and used, and their ratio with and without what the process held before."""
    from metatrain.training.in_process import InProcess
    from metatrain.training.memory import predict_memory, total_bytes
    from metatrain.training.outer_loop import initial_state, train
    from metatrain.training.profiling import peak_mib
    from metatrain.training.worker import Worker

    case = cases.find_case(name)
    config = cases.config_of(case, engine={"compile": "off", "activation_checkpointing": setting})
    worker = Worker(config, torch.device("cpu"))
    predicted = predict_memory(worker)
    state, executor = initial_state(worker.initial(), config.outer), InProcess(worker)
    steps = train(state, executor, config.outer, config.executor.shard_size)
    for _ in range(2):
        next(steps)
    executor.close()
    before, total, used = predicted.process / MIB, total_bytes(predicted, apart=False) / MIB, peak_mib()
    return [round(total), round(used), round(total / used, 2), round((total - before) / (used - before), 2)]


_MEASUREMENTS = {"gradient": _gradient, "step": _step}
