"""Measure the largest sum of tensors that are alive at once during a computation."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(compute: Callable[[], Any]) -> int:
    """Return the largest sum of bytes that torch's allocator gave out during `compute` and that were not yet freed.

    It is exact, and does not depend on what else the machine does. What exists before is not counted.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        compute()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    alive = highest = 0
    for _, change in changes:
        alive += change
        highest = max(highest, alive)
    return highest
