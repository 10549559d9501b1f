"""Open the tasks of a split of any source, by their shape: of one size, of many sizes, or with descriptions."""

from typing import Any

from tasks.described import described_tasks
from tasks.described_shape import DescribedShape, TaskShape
from tasks.environments.shape import EnvironmentShape
from tasks.ragged import ragged_tasks
from tasks.text import part_of
from tasks.types import EpisodeShape, Split, TaskDistribution


def open_tasks(source: Any, name: str, split: Split, shape: TaskShape, seed: int) -> TaskDistribution[Any]:
    """Return the tasks of one split of the source `name`. ValueError: it has none of this shape."""
    if isinstance(shape, DescribedShape):
        return described_tasks(source, name, split, shape, seed)
    if isinstance(shape, EpisodeShape | EnvironmentShape):
        found: TaskDistribution[Any] = source.distribution(split, shape, seed)
        return found
    if hasattr(source, "ragged"):
        return source.ragged(split, shape, seed)  # type: ignore[no-any-return]
    if not hasattr(source, "pool"):
        part = part_of(split)
        raise ValueError(f"{part}: tasks of {name} have one size: set numbers for {part}.ways, .shots and .queries")
    return ragged_tasks(source.pool(split), shape, seed, split)
