"""Record what the tasks of a store are drawn from: the classes of each split, digests of their images, doubles."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from tasks.store.store import Store, open_store
from tasks.store.store_cache import LoadedStore
from tasks.text import count_of
from tasks.types import SPLITS, DataRecord, Split

_SHOWN = 3
"""Pairs of classes with an identical image that are named."""


def describe_data(loaded: LoadedStore, splitting: str) -> DataRecord:
    """Return the record of a store's classes, split as `header.splittings[splitting]` says."""
    store, findings = loaded
    header = store.header
    fitting = len(findings.classes) == len(header.classes)
    names = findings.classes if fitting else tuple(kind.name for kind in header.classes)
    numbers = header.splittings[splitting]
    contents, doubles = _digest_images(store.path)
    classes = {split: [names[number] for number in numbers[split]] for split in SPLITS}
    split_of: dict[int, Split] = {number: split for split in SPLITS for number in numbers[split]}
    return DataRecord(
        classes,
        {names[number]: contents[number] for number in split_of},
        sum(header.classes[number].stop - header.classes[number].start for number in split_of),
        (*findings.notes, *(f"left out: {line}" for line in store.left_out)),
        _describe_doubles(store, names, doubles, split_of),
    )


@lru_cache(maxsize=16)
def _digest_images(path: str) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Return the digest of each class of a store, and the rows of each group of images that are identical."""
    store = open_store(path)
    rows = np.ascontiguousarray(store.images).reshape(len(store.images), -1)
    digests = [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]
    contents = (hashlib.sha256(b"".join(digests[kind.start : kind.stop])) for kind in store.header.classes)
    groups: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        groups.setdefault(digest, []).append(row)
    doubles = (tuple(group) for group in groups.values() if len(group) > 1)
    return tuple(content.hexdigest()[:32] for content in contents), tuple(doubles)


def _describe_doubles(
    store: Store, names: Sequence[str], doubles: Sequence[tuple[int, ...]], split_of: Mapping[int, Split]
) -> tuple[str, ...]:
    """Describe images that are identical under two classes, and of those the ones in two splits."""
    starts = np.array([kind.start for kind in store.header.classes])
    pairs: list[tuple[int, int]] = []
    crossing = 0
    for rows in doubles:
        owners = sorted({int(np.searchsorted(starts, row, "right")) - 1 for row in rows} & set(split_of))
        if len(owners) > 1:
            crosses = len({split_of[owner] for owner in owners}) > 1
            crossing += crosses
            pair = (owners[0], next((o for o in owners if split_of[o] != split_of[owners[0]]), owners[1]))
            pairs.append(pair)
    if not pairs:
        return ()
    shown = sorted(dict.fromkeys(pairs), key=lambda pair: split_of[pair[0]] == split_of[pair[1]])
    examples = ", ".join(
        " and ".join(f"{names[owner]!r} ({split_of[owner]})" for owner in pair) for pair in shown[:_SHOWN]
    )
    more = "" if len(shown) <= _SHOWN else f" and {len(shown) - _SHOWN:,} more pairs"
    across = f", {crossing:,} of them in two splits" if crossing else ""
    return (
        f"{count_of(len(pairs), 'image')} identical under two or more classes{across}: {examples}{more}: "
        "remove them where they do not belong",
    )
