"""Write what a network makes of every example of a data set: feature vectors, for `tasks.name=features`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from metatrain.training.embedding import reference_examples
from metatrain.training.worker import Worker
from metatrain.types import Executor, Shard, ShardRequest
from metatrain.validation import require
from tasks.few_shot import ClassPool, locate_examples
from tasks.io.atomic import atomic_write
from tasks.random import Integers
from tasks.text import count_of
from tasks.types import SPLITS, Progress, Split

SUFFIX = ".parquet"
TOGETHER = 128
"""Examples that a worker embeds at a time."""
MOST = 2 * 10**6
"""Examples of a split beyond which a source is taken for one that draws its examples, and has no end."""


class Embedded(NamedTuple):
    """Some of the examples of a split: the name of each one's class, and features [n, D]."""

    split: Split
    classes: Sequence[str]
    features: Tensor


def embed_all(worker: Worker, executor: Executor, per_class: int | None = None) -> Iterator[Embedded]:
    """Embed the examples of all classes on all workers: split by split, class by class, each in its order.

    per_class: how many examples of each class, the first ones; None for all. The network has the parameters of step 0
    (`initialize` and `model.weights` give it trained ones), and no example changes the features of another: statistics
    of batches are those of training examples. ValueError: the tasks are not drawn from classes of examples, or the
    network takes its statistics from the batch alone.
    """
    reference_examples(worker.model, worker.pool("train"))  # refused here, not by every worker
    params = worker.initial()
    for split, pool in ((split, worker.pool(split)) for split in SPLITS):
        shards = list(_shards(choose_places(pool, per_class)))
        if not shards:
            continue
        found = executor.map(ShardRequest("embed", split, 0), params, shards)
        for shard, scores in zip(shards, found, strict=True):
            classes, _ = locate_examples(pool, shard.indices)
            yield Embedded(split, pool.class_names(classes), scores.values["features"])


def choose_places(pool: ClassPool, per_class: int | None) -> Integers:
    """Return the places of the first `per_class` examples of each class among all. ValueError: they are too many."""
    sizes = pool.sizes(np.arange(pool.num_classes))
    taken = sizes if per_class is None else sizes.clip(max=per_class)
    many = f"--per-class: {int(taken.sum()):,} examples of {len(sizes):,} classes of {pool.name}, more than {MOST:,}"
    require(int(taken.sum()) <= MOST, f"{many}: embed fewer of each class, or set tasks of fewer classes")
    before, start = np.repeat(taken.cumsum() - taken, taken), np.repeat(sizes.cumsum() - sizes, taken)
    places: Integers = np.arange(len(before)) - before + start
    return places


def _shards(places: Integers) -> Iterator[Shard]:
    for number, first in enumerate(range(0, len(places), TOGETHER)):
        yield Shard(number, tuple(places[first : first + TOGETHER].tolist()))


def write_embeddings(
    worker: Worker, executor: Executor, path: Path, progress: Progress, per_class: int | None = None
) -> str:
    """Write columns class, split and features (a list) to a Parquet file, and return what is in it.

    The file has its name once it is whole. progress: called with the examples done and all. For the rest see
    `embed_all`.
    """
    pools = {split: worker.pool(split) for split in SPLITS}
    total, done = sum(len(choose_places(pool, per_class)) for pool in pools.values()), 0
    require(total > 0, "tasks: there are no examples to embed: choose others")
    size = worker.model.num_features
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, _schema(size)) as writer:
        for part in embed_all(worker, executor, per_class):
            writer.write_table(_as_table(part))
            done += len(part.features)
            progress(done, total)
    return _describe(pools, total, size)


def _schema(size: int) -> pa.Schema:
    return pa.schema({"class": pa.string(), "split": pa.string(), "features": pa.list_(pa.float32(), size)})


def _as_table(part: Embedded) -> pa.Table:
    rows, size = part.features.shape
    flat = pa.array(np.ascontiguousarray(part.features.numpy()).reshape(-1))
    features = pa.FixedSizeListArray.from_arrays(flat, size)
    return pa.table({"class": list(part.classes), "split": [part.split] * rows, "features": features}, _schema(size))


def _describe(pools: dict[Split, ClassPool], total: int, size: int) -> str:
    parts = ", ".join(f"{pool.num_classes} for {split}" for split, pool in pools.items())
    classes = sum(pool.num_classes for pool in pools.values())
    return f"{total:,} vectors of {size:,} numbers in {count_of(classes, 'class', 'classes')} ({parts})"
