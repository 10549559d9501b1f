"""Keep what tasks were collected as, for as long as the same parameters act: a cache that no result depends on."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from metatrain.algorithms.updates import OLD, own_params, sent_params
from metatrain.types import Params


def acting_params(params: Params) -> Params:
    """Return the parameters that act in the tasks: those sent as old ones, or else the call's own."""
    return sent_params(params, OLD) or own_params(params)


def without_old(params: Params) -> Params:
    """Return the parameters that an algorithm computes with."""
    return {name: value for name, value in params.items() if not name.startswith(OLD)}


class Collected:
    """What the tasks of the last step were collected as, by shard; another step or other parameters clear it."""

    def __init__(self) -> None:
        self._key: tuple[int, bytes] | None = None
        self._kept: dict[tuple[Sequence[int], int], Any] = {}

    def get(self, step: int, acting: Params, place: tuple[Sequence[int], int], collect: Callable[[], Any]) -> Any:
        """Return what `collect` returns, of an earlier call if it was for the same. place: a shard's indices, batch."""
        key = (step, _digest(acting))
        if key != self._key:
            self._key, self._kept = key, {}
        if place not in self._kept:
            self._kept[place] = collect()
        return self._kept[place]


def _digest(params: Params) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(params):
        found.update(name.encode())
        found.update(params[name].detach().cpu().contiguous().numpy().tobytes())
    return found.digest()
