"""What the process of a trial is told: all that it needs, so that any process on any node can live it."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class TrialSpec(NamedTuple):
    """What a process needs to know of a trial. config: plain and whole; rungs: steps at which it reports `metric`.

    parent: (place, step) of the checkpoint that it begins from, if any. objectives: the costs that it reports too.
    """

    number: int
    run_id: str
    place: str
    config: Mapping[str, Any]
    rungs: tuple[int, ...]
    metric: str
    tags: Mapping[str, str]
    objectives: tuple[str, ...] = ()
    parent: tuple[str, int] | None = None
