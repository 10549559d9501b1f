"""Specify a trial for its process: all that it needs to run on any node."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class TrialSpec(NamedTuple):
    """One trial to run. config: plain and whole; rungs: steps at which it reports `metric`.

    parent: (location, step) of the checkpoint that it begins from, if any. objectives: the costs that it reports too.
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
