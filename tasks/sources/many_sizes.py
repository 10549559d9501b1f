"""What sources share whose tasks have no fixed classes: shots count whole examples, and support sets differ in size."""

from collections.abc import Sequence

import numpy as np

from tasks.random import Integers, uniforms
from tasks.text import part_of
from tasks.types import EpisodeShape, Split


def require_no_ways(split: Split, episode: EpisodeShape, reason: str, also: str = "") -> None:
    """Check that no number of classes is asked for. ValueError: one is, and the `reason` why there is none."""
    part = part_of(split)
    if episode.ways is not None:
        raise ValueError(f"{part}.ways: {reason}: set {part}.ways=null{also}")


def require_count(name: str, value: int, most: int = 10_000) -> None:
    """Check that a setting is a count within bounds. ValueError: it is not."""
    if not 1 <= value <= most:
        raise ValueError(f"{name}: {value} is none of 1 to {most}: set one of these")


def require_fewest(split: Split, episode: EpisodeShape, fewest: int | None, what: str) -> None:
    """Check that the smallest support set is no larger than the largest. what: "pixels"."""
    if fewest is not None and fewest > episode.shots:
        raised = f"raise {part_of(split)}.shots"
        raise ValueError(f"tasks.fewest: {fewest} {what} at least, and {episode.shots} at most: {raised}")


def draw_sizes(seed: int, stream: int, indices: Sequence[int], fewest: int | None, shots: int) -> Integers:
    """Return the size of each task's support set [B], between `fewest` and `shots`; None: all have `shots`."""
    if fewest is None:
        return np.full(len(indices), shots)
    draws = uniforms(seed, stream, indices, 1)[:, 0]
    return fewest + (draws * (shots - fewest + 1)).astype(np.int64)


def order_rows(draw: np.random.Generator, target: Integers, support: int) -> Integers:
    """Return a random order of rows in which one of every class is among the first `support`. target: [rows]."""
    order = draw.permutation(len(target))
    _, first = np.unique(target[order], return_index=True)
    order = np.concatenate([order[first], np.delete(order, first)])
    return np.concatenate([draw.permutation(order[:support]), order[support:]])
