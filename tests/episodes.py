"""Make small episodes of random numbers, for tests of arithmetic rather than learning."""

import torch

from metatrain.types import Context
from tasks.types import Episode, Examples, TaskSpec


def classification_spec(ways: int = 3, size: int = 10, channels: int = 2) -> TaskSpec:
    return TaskSpec("classification", ways, (channels, size, size), ())


def random_episodes(
    spec: TaskSpec, tasks: int, shots: int = 2, queries: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Episode:
    generator = torch.Generator().manual_seed(seed)

    def examples(each: int) -> Examples:
        x = torch.rand(tasks, spec.ways * each, *spec.x, generator=generator, dtype=dtype)
        return Examples(x, torch.arange(spec.ways).repeat_interleave(each).repeat(tasks, 1))

    return Episode(examples(shots), examples(queries))


def context_of(tasks: int, noise: int | None = None) -> Context:
    """Return a context without noise, or, given a noise key, with a key of its own for each task."""
    keys = torch.full((tasks,), -1) if noise is None else torch.arange(tasks) * 7919 + noise
    return Context(torch.tensor(0), keys)
