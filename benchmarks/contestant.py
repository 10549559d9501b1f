"""One contender in a process of its own, told by lines on its standard input what to do next.

    python -m benchmarks.contestant NAME CASE [--threads N] [--double] [--keep-freed]

It imports, builds, and answers {"ready": true}; then each line by one of JSON:
    warm FILE   one gradient, the first: {"first_call_s"}; FILE (.npz) gets the gradients, to be checked
    go SECONDS  gradients for at least SECONDS: {"seconds": of one, "repeats"}
    peak        one gradient: {"peak_mib": resident memory at its highest, over what there was, "baseline_mib"}
What goes wrong is answered by {"failed": reason}, after which it ends.
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
from metatrain.training.worker import keep_freed_memory


def main() -> None:
    """Answers until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("case", type=cases.find)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--keep-freed", action="store_true")
    asked = parser.parse_args()
    # Libraries may print; what they say goes where errors go, and the line to the parent stays clean.
    line = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        gradient = prepared(asked)
        line.write(json.dumps({"ready": True}) + "\n")
        for command in sys.stdin:
            word, _, argument = command.strip().partition(" ")
            line.write(json.dumps(ANSWERS[word](gradient, argument)) + "\n")
    except Exception as error:  # noqa: BLE001 - other people's libraries: whatever it is, it is told and recorded
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        line.write(json.dumps({"failed": reason[:300]}) + "\n")


def prepared(asked: argparse.Namespace) -> Gradient:
    """The contender's function, everything that is prepared once being done."""
    case: cases.Case = asked.case
    if asked.threads is not None:
        case = cases.replace(case, threads=asked.threads)
    torch.set_num_threads(case.threads or os.cpu_count() or 1)
    if asked.keep_freed:
        keep_freed_memory()
    params, tasks = cases.params_of(case), cases.tasks_of(case)
    if asked.double:
        params, tasks = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, (params, tasks))
    return CONTENDERS[asked.name](case, params, tasks)


def warm(gradient: Gradient, file: str) -> dict[str, Any]:
    """The first call, with all that is compiled or allocated on it, and what it found."""
    began = time.perf_counter()
    found = gradient()
    seconds = time.perf_counter() - began
    np.savez(Path(file), **{name: value.detach().numpy() for name, value in found.items()})
    return {"first_call_s": seconds}


def go(gradient: Gradient, at_least: str) -> dict[str, Any]:
    """Seconds of one gradient: the mean over so many that they take `at_least` seconds together.

    One goes before them uncounted: who has waited for the others has lost caches, and pages, that a run keeps.
    """
    gradient()
    began, repeats = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < float(at_least) or not repeats:
        gradient()
        repeats += 1
    return {"seconds": spent / repeats, "repeats": repeats}


def threads(gradient: Gradient, _: str) -> dict[str, Any]:
    """Leaves torch with one thread or with one a core, whichever is faster for this gradient."""
    seconds = {}
    for count in (1, os.cpu_count() or 1):
        torch.set_num_threads(count)
        gradient()
        seconds[count] = go(gradient, "1")["seconds"]
    best = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(best)
    return {"threads": best}


def peak(gradient: Gradient, _: str) -> dict[str, Any]:
    """The high-water mark of resident memory during one gradient, over what was resident before, in MiB."""
    gc.collect()
    # Freed blocks go back to the system: what is resident afterwards is what is in use.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    gradient()
    return {"peak_mib": _resident("VmHWM") - before, "baseline_mib": before}


ANSWERS = {"warm": warm, "go": go, "threads": threads, "peak": peak}


def _resident(key: str) -> float:
    """VmRSS (now) or VmHWM (at most since it was reset) of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


if __name__ == "__main__":
    main()
