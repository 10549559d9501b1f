"""Measure episodes sampled per second, compared with gathering the same rows without sampling.

A task of 5 ways, 1 shot and 15 queries is 80 images of 28×28. Its minimum cost is to take 80 rows from the
memory-mapped store and, for training, to convert them to float32 in [0, 1]:

    (a) rows = store.images.take(r)        (b) float32(rows) / 255        ratio = seconds of episodes() / seconds of (b)

Parts are computed by subtraction: choose = draw − Philox, turns (rotations) = images − take − float, labels =
episodes − draw − images. One core; every repetition draws new tasks, calls alternate, and a number is the median over
repetitions.
"""

import argparse
import ctypes
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import results
from metatrain.training.devices import keep_freed_memory
from tasks.few_shot import FewShot
from tasks.random import Integers, stream, uniforms
from tasks.sources.omniglot import Omniglot
from tasks.sources.strokes import Strokes
from tasks.store.class_pool import StorePool
from tasks.store.store import ClassSlice, Header, Images, Store, open_store, write_store
from tasks.types import EpisodeShape, no_progress

SHAPE = EpisodeShape(ways=5, shots=1, queries=15)
BATCHES = (1, 4, 32)
COLUMNS = ["tasks", "store", "batch", "episodes/s", "take/s", "take + float/s", "× take", "× take + float"]
PARTS = ("philox", "choose", "take", "float", "turns", "labels")
_CHARACTERS, _DRAWINGS = 1100, 20
_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)


class Timed(NamedTuple):
    """Median seconds of each call for one batch."""

    episodes: float
    draw: float
    philox: float
    images: float
    take: float
    gather: float
    """take and conversion to float32."""

    def parts(self) -> dict[str, float]:
        """Return seconds by part of `episodes`; a negative difference of two medians (noise) becomes 0."""
        turns = self.images - self.gather
        seconds = (self.philox, self.draw - self.philox, self.take, self.gather - self.take, turns)
        labels = self.episodes - self.draw - self.images
        return {part: max(0.0, value) for part, value in zip(PARTS, (*seconds, labels), strict=True)}


def main(argv: list[str]) -> None:
    """Measure, and write the part "episodes"."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as every worker does: otherwise page faults dominate large batches
    with tempfile.TemporaryDirectory() as scratch:
        store, numbers, what = _store(arguments.root, Path(scratch))
        kept = drop_pages(store)
        rows, details = measure(store, numbers, arguments.repeats, max(3, arguments.repeats // 10))
    cold_note = f"{1 - kept:.0%} of the store was dropped from the page cache"
    cold_note += " (the file system ignores the request: the cold rows are not cold)" if kept > 0.5 else ""
    notes = [
        f"{what}; 5 ways, 1 shot, 15 queries: 80 images of 28×28 a task, float32; one core, medians of "
        f"{arguments.repeats} interleaved repetitions (a tenth of it from a cold store).",
        "'turned' are training tasks, three quarters of whose classes are rotated; 'plain' the same without rotation.",
        f"Cold: mapping and page cache dropped before each call (madvise, posix_fadvise); {cold_note}. Caches of the "
        "disk or a "
        "hypervisor stay warm.",
        "Microseconds by part, warm: " + "; ".join(_part_note(d) for d in details if d["store"] == "warm") + ".",
    ]
    results.write("episodes", "Sampling episodes", COLUMNS, rows, notes, {"details": details, "kept": kept})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks episodes", description="Measure episodes per second against gathering rows."
    )
    data = os.environ.get("METATRAIN_DATA")
    parser.add_argument("--root", default=data and str(Path(data) / "omniglot"), help="Omniglot's folder")
    parser.add_argument("--repeats", type=int, default=200)
    return parser


def measure(
    store: Store, numbers: tuple[int, ...], repeats: int, cold_repeats: int
) -> tuple[list[list[object]], list[dict[str, Any]]]:
    """Return the rows of the table, and the details with the parts."""
    rows, details = [], []
    for turns, tasks in ((4, "turned"), (1, "plain")):
        distribution = FewShot(StorePool(store.header.name, store, numbers, turns), SHAPE, 0, "train")
        for batch in BATCHES:
            for warmth, count in (("warm", repeats), ("cold", cold_repeats)):
                timed = time_batch(distribution, batch, count, warmth == "cold")
                pace = [batch / seconds for seconds in (timed.episodes, timed.take, timed.gather)]
                rows.append([tasks, warmth, batch, *map(round, pace), *_ratios(timed)])
                micros = {part: round(1e6 * seconds, 1) for part, seconds in timed.parts().items()}
                details.append({"tasks": tasks, "store": warmth, "batch": batch, "us": micros, **timed._asdict()})
    return rows, details


def time_batch(distribution: FewShot, batch: int, repeats: int, cold: bool) -> Timed:
    """Measure the median seconds of each call for `batch` tasks, after one uncounted call of each."""
    seconds: dict[str, list[float]] = {name: [] for name in Timed._fields}
    for repeat in range(-1, repeats):
        calls = _calls(distribution, range((repeat + 1) * batch, (repeat + 2) * batch))
        # Rotate the order, so that no call always profits from the caches of the same predecessor.
        names = np.roll(list(calls), repeat).tolist()
        for name in names:
            if cold:
                drop_pages(_pool(distribution).store)
            began = time.perf_counter()
            calls[name]()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return Timed(**{name: median(values) for name, values in seconds.items()})


def _calls(distribution: FewShot, indices: range) -> dict[str, Callable[[], object]]:
    pool = _pool(distribution)
    classes, members = distribution.draw(indices)
    owners, which = np.repeat(classes.reshape(-1), members.shape[2]), members.reshape(-1)
    rows = rows_of(pool, owners, which)
    count, purpose = SHAPE.ways * (1 + SHAPE.shots + SHAPE.queries), stream("few-shot", distribution.split)
    return {
        "episodes": lambda: distribution.episodes(indices),
        "draw": lambda: distribution.draw(indices),
        "philox": lambda: uniforms(distribution.seed, purpose, indices, count),
        "images": lambda: pool.examples(owners, which),
        "take": lambda: pool.store.images.take(rows, axis=0),
        "gather": lambda: as_float(pool.store.images.take(rows, axis=0)),
    }


def rows_of(pool: StorePool, classes: Integers, members: Integers) -> Integers:
    """Return the store's row of image members[r] of class classes[r]. classes, members: [R]."""
    starts = np.array([pool.store.header.classes[number].start for number in pool.numbers])
    return starts[classes % len(pool.numbers)] + members


def as_float(pixels: Images) -> Tensor:
    """Convert uint8 in [0, 255] to float32 in [0, 1]."""
    return torch.from_numpy(pixels).to(torch.float32).mul_(1 / 255)


def drop_pages(store: Store) -> float:
    """Drop the store's pages; return the share, from 0 to 1, that is still in the page cache.

    Mapped pages stay in the page cache, so the mapping is emptied first.
    """
    start = store.images.ctypes.data // _PAGE * _PAGE
    length = store.images.ctypes.data + store.images.nbytes - start
    _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
    descriptor = os.open(store.path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not on disk yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    pages = (ctypes.c_ubyte * (-(-length // _PAGE)))()
    _LIBC.mincore(ctypes.c_void_p(start), ctypes.c_size_t(length), pages)
    return float((np.frombuffer(memoryview(pages), dtype=np.uint8) & 1).mean())


def _store(root: str | None, scratch: Path) -> tuple[Store, tuple[int, ...], str]:
    """Return the store, the classes to draw from, and its name."""
    if root is not None:
        store = Omniglot(root=root).store(no_progress)
        return store, store.header.splittings["characters"]["train"], "Omniglot's 1100 training characters"
    store = drawn_store(scratch / "strokes.arrow")
    return store, tuple(range(_CHARACTERS)), f"{_CHARACTERS} drawn characters of {_DRAWINGS} drawings (no Omniglot)"


def drawn_store(path: Path) -> Store:
    """Write a store of strokes with the size of Omniglot's training characters."""
    pool = Strokes().distribution("train", SHAPE, 0).pool
    classes = np.repeat(np.arange(_CHARACTERS), _DRAWINGS)
    images = pool.examples(classes, np.tile(np.arange(_DRAWINGS), _CHARACTERS))
    slices = tuple(ClassSlice(str(c), c * _DRAWINGS, (c + 1) * _DRAWINGS) for c in range(_CHARACTERS))
    header = Header("strokes", pool.example_shape, slices, {}, "drawn", "none", "none")
    write_store(path, header, (images.numpy() * 255).round().astype(np.uint8))
    return open_store(path)


def _pool(distribution: FewShot) -> StorePool:
    assert isinstance(distribution.pool, StorePool)
    return distribution.pool


def _ratios(timed: Timed) -> list[float]:
    return [round(timed.episodes / other, 2) for other in (timed.take, timed.gather)]


def _part_note(detail: dict[str, Any]) -> str:
    parts = ", ".join(f"{part} {micros:g}" for part, micros in detail["us"].items())
    return f"{detail['tasks']} batch {detail['batch']}: {parts}"
