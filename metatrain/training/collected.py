"""Keep what tasks were collected as, for as long as the same parameters act: a cache that no result depends on."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from metatrain.algorithms.updates import OLD, own_params, sent_params
from metatrain.engine import Engine
from metatrain.models import Model
from metatrain.training.profiling import Meter
from metatrain.types import Context, Params


def acting_params(params: Params) -> Params:
    """Return the parameters that act in the tasks: those sent as old ones, or else the call's own."""
    return sent_params(params, OLD) or own_params(params)


def without_old(params: Params) -> Params:
    """Return the parameters that an algorithm computes with."""
    return {name: value for name, value in params.items() if not name.startswith(OLD)}


class Call(NamedTuple):
    """What tasks are collected for: the outer step, a shard's indices and the number of a batch, and who acts."""

    step: int
    place: tuple[Sequence[int], int]
    acting: Params
    context: Context


class Collected:
    """What the tasks of the last step were collected as, by shard; another step or other parameters clear it."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._key: tuple[int, bytes] | None = None
        self._kept: dict[tuple[Sequence[int], int], Any] = {}

    def tasks(self, algorithm: Any, model: Model, call: Call, tasks: Any, engine: Engine) -> Any:
        """Return tasks as the algorithm takes them: as they are, or what acting in them gives or gave in this step."""
        if not hasattr(algorithm, "collect"):
            return tasks
        key = (call.step, _digest(call.acting))
        if key != self._key:
            self._key, self._kept = key, {}
        if call.place not in self._kept:
            with self._meter.part("collect"):
                self._kept[call.place] = algorithm.collect(model, call.acting, tasks, call.context, engine)
        return self._kept[call.place]


def _digest(params: Params) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(params):
        found.update(name.encode())
        found.update(params[name].detach().cpu().contiguous().numpy().tobytes())
    return found.digest()
