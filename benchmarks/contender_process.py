"""Run one contender as a process that reads commands from standard input and answers in JSON lines.

    python -m benchmarks.contender_process NAME CASE [--threads N] [--double] [--keep-freed]

It imports and builds the contender and answers {"ready": true}. Commands:
    warm FILE   compute the first gradient: {"first_call_s"}; write the gradients to FILE (.npz) for checking
    go SECONDS  compute gradients for at least SECONDS: {"seconds": of one, "repeats"}
    threads     choose one thread or one per core, whichever is faster: {"threads"}
    peak        compute one gradient: {"peak_mib": peak resident memory above the baseline, "baseline_mib"}
An error is answered by {"failed": reason}, after which the process ends.
"""

import argparse
import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from benchmarks import cases
from benchmarks.contenders import CONTENDERS, Gradient
from metatrain.training.devices import keep_freed_memory


def main() -> None:
    """Answer commands until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("case", type=cases.find_case)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--keep-freed", action="store_true")
    options = parser.parse_args()
    # Libraries may print: redirect their output to standard error, so that only answers go to the parent.
    line = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        gradient = prepare(options)
        line.write(json.dumps({"ready": True}) + "\n")
        for command in sys.stdin:
            word, _, argument = command.strip().partition(" ")
            line.write(json.dumps(ANSWERS[word](gradient, argument)) + "\n")
    except Exception as error:  # noqa: BLE001 - any error of a third-party library is reported and recorded
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        line.write(json.dumps({"failed": reason[:300]}) + "\n")


def prepare(options: argparse.Namespace) -> Gradient:
    """Return the contender's gradient function after its one-time preparation."""
    case: cases.Case = options.case
    if options.threads is not None:
        case = cases.replace(case, threads=options.threads)
    torch.set_num_threads(case.threads or os.cpu_count() or 1)
    if options.keep_freed:
        keep_freed_memory()
    params, tasks = cases.params_of(case), cases.tasks_of(case)
    if options.double:
        params, tasks = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, (params, tasks))
    return CONTENDERS[options.name](case, params, tasks)


def warm(gradient: Gradient, file: str) -> dict[str, Any]:
    """Time the first call, including compilation and allocation, and save its gradients."""
    began = time.perf_counter()
    found = gradient()
    seconds = time.perf_counter() - began
    np.savez(Path(file), **{name: value.detach().numpy() for name, value in found.items()})
    return {"first_call_s": seconds}


def time_gradient(gradient: Gradient, at_least: str) -> dict[str, Any]:
    """Return the mean seconds of one gradient over at least `at_least` seconds.

    One uncounted call comes first, because a process that waited for others has lost its caches and pages.
    """
    gradient()
    began, repeats = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < float(at_least) or not repeats:
        gradient()
        repeats += 1
    return {"seconds": spent / repeats, "repeats": repeats}


def threads(gradient: Gradient, _: str) -> dict[str, Any]:
    """Set torch to one thread or one per core, whichever is faster for this gradient."""
    seconds = {}
    for count in (1, os.cpu_count() or 1):
        torch.set_num_threads(count)
        gradient()
        seconds[count] = time_gradient(gradient, "1")["seconds"]
    best = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(best)
    return {"threads": best}


def peak(gradient: Gradient, _: str) -> dict[str, Any]:
    """Return the peak resident memory during one gradient above the resident memory before it, in MiB."""
    gc.collect()
    # Return freed blocks to the system, so that resident memory is memory in use.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    gradient()
    return {"peak_mib": _resident("VmHWM") - before, "baseline_mib": before}


ANSWERS = {"warm": warm, "go": time_gradient, "threads": threads, "peak": peak}


def _resident(key: str) -> float:
    """Return VmRSS (current) or VmHWM (peak since the reset) of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


if __name__ == "__main__":
    main()
