"""Measure what sampling a task from a mixture of stores costs, beside sampling it from one of them.

The stores hold random images that this part writes to a temporary folder. All distributions have tasks of one size:

    ratio = seconds a task of the mixture / seconds a task of a single store

once where all images have the shape that is asked for, and once where those of both, the single store and the mixture,
are resized. Calls alternate, each samples tasks that none before it did, and a number is the median over repetitions
of the thread's own (CPU) seconds.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import results
from metatrain.training.devices import keep_freed_memory
from tasks.sources.image_folder import ImageFolder
from tasks.sources.mixture import MixedSource, Mixture
from tasks.transformed import Resize, TransformedSource
from tasks.types import EpisodeShape, TaskDistribution

SHAPE = EpisodeShape(ways=5, shots=1, queries=15)
BATCHES = (1, 4, 32)
STORES, CLASSES, COPIES = 3, 40, 20
SIDE, RESIZED = 32, 28
COLUMNS = ["images", "batch", "one store (µs a task)", "mixture (µs a task)", "ratio"]


def main(argv: list[str]) -> None:
    """Measure, and write the part "mixture_sampling"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks mixture_sampling", description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--quiet", action="store_true", help="say that nothing else ran on this machine")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as every worker does
    with tempfile.TemporaryDirectory() as folder:
        compared = open_distributions(Path(folder))
        rows = [
            [images, batch, *measure(one, mixed, batch, options.repeats)]
            for images, (one, mixed) in compared.items()
            for batch in BATCHES
        ]
    beside = "nothing else ran" if options.quiet else "other processes shared the cores"
    notes = [
        f"{SHAPE.ways} ways, {SHAPE.shots} shot, {SHAPE.queries} queries: 80 colour images of {SIDE}×{SIDE} a task, "
        f"from {STORES} stores of {CLASSES} classes; resized, to {RESIZED}×{RESIZED}, in both. Median CPU seconds of "
        f"one thread over {options.repeats} interleaved repetitions; {beside}.",
        "A batch of a mixture is sampled source by source, so that of few tasks each call has fewer.",
    ]
    results.write("mixture_sampling", "Sampling from a mixture", COLUMNS, rows, notes, {})


def open_distributions(folder: Path) -> dict[str, tuple[TaskDistribution[Any], TaskDistribution[Any]]]:
    """Write the stores, and return training tasks of one and of the mixture, by what is done to images."""
    cache = str(folder / "cache")
    roots = [write_images(folder / f"images {number}", number) for number in range(STORES)]
    one = ImageFolder(root=str(roots[0]), cache=cache, size=SIDE)
    sources = {
        f"store {number}": MixedSource("image_folder", str(root), cache, {"size": SIDE})
        for number, root in enumerate(roots)
    }
    resized = TransformedSource(one, Resize((3, RESIZED, RESIZED)))
    return {
        "as they are": (one.distribution("train", SHAPE, 0), Mixture(sources).distribution("train", SHAPE, 0)),
        "resized": (
            resized.distribution("train", SHAPE, 0),
            Mixture(sources, size=RESIZED).distribution("train", SHAPE, 0),
        ),
    }


def write_images(root: Path, seed: int) -> Path:
    """Write random images as train/CLASS/COPY.png, and a class for each of val/ and test/; return the folder."""
    draw = np.random.default_rng(seed)
    classes = [f"train/class {number}" for number in range(CLASSES)] + ["val/other", "test/another"]
    for name in classes:
        (root / name).mkdir(parents=True)
        for copy in range(COPIES):
            pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{copy}.png")
    return root


def measure(one: TaskDistribution[Any], mixed: TaskDistribution[Any], batch: int, repeats: int) -> list[float]:
    """Return the microseconds a task of both, and their ratio."""
    seconds: list[tuple[float, float]] = []
    for repeat in range(-1, repeats):
        indices = range((repeat + 1) * batch, (repeat + 2) * batch)
        order = (one, mixed) if repeat % 2 else (mixed, one)
        spent = {id(tasks): seconds_of_sampling(tasks, indices) for tasks in order}
        if repeat >= 0:
            seconds.append((spent[id(one)], spent[id(mixed)]))
    micros = [1e6 * median(of) / batch for of in zip(*seconds, strict=True)]
    return [*micros, micros[1] / micros[0]]


def seconds_of_sampling(tasks: TaskDistribution[Any], indices: range) -> float:
    """Return the CPU seconds of sampling the tasks at `indices`."""
    began = time.thread_time()
    tasks.episodes(indices)
    return time.thread_time() - began
