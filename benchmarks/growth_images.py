"""Measure a store of millions of images: opening it, its pool of classes, and drawing episodes from it.

Images are noise of 1×8×8 pixels: what is measured is what grows with the number of images and classes, not the copying
of pixels, which the part "episodes" measures. Each store is opened in a process of its own.
"""

import multiprocessing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.commands import Timer, resident_mib
from tasks.store.store import ClassSlice, Header, write_store

SHAPE = (1, 8, 8)
PER_CLASS = 100
BATCH, BATCHES = 4, 200
COLUMNS = [
    *("images", "classes", "file, MiB", "write, s", "open, s", "open, MiB", "first batch, s", "pool, MiB"),
    *("ms an episode", "MiB more after episodes", "resident, MiB"),
]


class Opened(NamedTuple):
    """What a process that opens a store and draws from it has measured; MiB without the mapped file but the last."""

    open_s: float
    open_mib: float
    first_s: float
    first_mib: float
    episode_ms: float
    drawn_mib: float
    resident: float


def measure(folder: Path, images: int) -> list[Any]:
    """Write a store of so many images, and return its row."""
    path = folder / f"{images}.arrow"
    classes = max(10, images // PER_CLASS)
    with Timer() as written:
        _write(path, images, classes)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_open, (str(path), classes))
    size = path.stat().st_size / 2**20
    path.unlink()
    row = [images, classes, round(size), round(written.seconds, 1), round(found.open_s, 3), round(found.open_mib, 1)]
    row += [round(found.first_s, 3), round(found.first_mib, 1), round(found.episode_ms, 3)]
    row += [round(found.drawn_mib, 1), round(found.resident)]
    print(row, flush=True)
    return row


def _write(path: Path, images: int, classes: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (images, *SHAPE), dtype=np.uint8)
    bounds = np.linspace(0, images, classes + 1).astype(int).tolist()
    slices = tuple(ClassSlice(f"class {c}", bounds[c], bounds[c + 1]) for c in range(classes))
    write_store(path, Header("noise", SHAPE, slices, {"all": {"train": tuple(range(classes))}}, "-", "-", "-"), pixels)


def _open(path: str, classes: int) -> Opened:
    import torch

    from tasks.few_shot import FewShot
    from tasks.store.class_pool import StorePool
    from tasks.store.store import open_store
    from tasks.types import EpisodeShape

    torch.set_num_threads(1)
    with Timer() as opened:
        store = open_store(path)
    with Timer() as first:
        pool = StorePool("noise", store, store.header.splittings["all"]["train"])
        tasks = FewShot(pool, EpisodeShape(5, 1, 15), 0, "train")
        tasks.episodes(range(BATCH))
    with Timer() as drawn:
        for number in range(1, BATCHES + 1):
            tasks.episodes(range(BATCH * number, BATCH * (number + 1)))
    each = 1000 * drawn.seconds / (BATCH * BATCHES)
    return Opened(opened.seconds, opened.mib, first.seconds, first.mib, each, drawn.mib, resident_mib())
