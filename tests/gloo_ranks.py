"""Run a function on several ranks of a gloo group, each in a process of its own."""

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from metatrain.training.ranks import Ranks

Job = Callable[[Ranks], Any]
SECONDS = 120.0


def on_ranks(folder: Path, size: int, job: Job) -> list[Any]:
    """Return what `job` returned on each rank, or the text of what it raised; None for a rank that was killed.

    job: of a module, as processes are started afresh; it returns a tree of tensors and plain values.
    """
    processes = [
        multiprocessing.get_context("spawn").Process(target=_run, args=(folder, rank, size, job))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"a rank waits for ever, of {size}")
    return [torch.load(path) if (path := folder / f"{rank}.pt").exists() else None for rank in range(size)]


def _run(folder: Path, rank: int, size: int, job: Job) -> None:
    torch.set_num_threads(1)
    where, timeout = f"file://{folder}/group", timedelta(seconds=SECONDS / 2)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size, timeout=timeout)
    try:
        with Ranks() as ranks:
            found = job(ranks)
    except (KeyError, OSError, RuntimeError) as error:
        found = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"{rank}.pt")
