"""Ask Ray, in a thread, which nodes of its cluster are about to leave, and notice when its head does not answer."""

import threading
import time

from ray._private.state import state  # Ray has no public API for draining nodes; Ray Serve uses the same one
from ray.exceptions import RayError

from cluster.connection import give_up
from cluster.events import Events
from metatrain.types import HEAD_SILENT

_CHECK_S = 2.0
_SILENT_S, _LOST_S = 10.0, 45.0
"""Seconds without an answer after which the state is kept, and the run ends: at 60 Ray would end the process."""


class NodeWatch:
    """Ask every two seconds, in a thread, which may wait a minute for the answer if the head is gone."""

    def __init__(self) -> None:
        self.leaving: dict[str, float] = {}
        """Seconds left to each node that was about to leave at the last answer, by node id."""
        self._answered = self._checked = time.monotonic()
        self._silent = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="node-watch", daemon=True)
        self._thread.start()

    def check(self, events: Events) -> None:
        """Note it if Ray's head is silent for a while; raise WorkersLost before Ray ends this process for that."""
        now = time.monotonic()
        if now - self._checked > _SILENT_S:
            self._answered = now  # no check for a while, as between evaluations, or this process was stopped
        self._checked, silence = now, now - self._answered
        if silence > _LOST_S:
            give_up(f"Ray's head has not answered for {silence:.0f} s: see gcs_server.out in its logs")
        if silence > _SILENT_S and not self._silent:
            events.note(HEAD_SILENT, f"Ray's head has not answered for {silence:.0f} s: the state is kept now")
        self._silent = silence > _SILENT_S

    def close(self) -> None:
        """Ask no more; wait for the last answer, so that Ray can be shut down."""
        self._closing.set()
        self._thread.join(_CHECK_S)

    def _watch(self) -> None:
        while not self._closing.wait(_CHECK_S):
            try:
                self.leaving = leaving_nodes()
            except RayError:
                continue
            self._answered = time.monotonic()


def leaving_nodes() -> dict[str, float]:
    """Return the seconds left to each draining node, by node id: a spot machine given notice, one being scaled down.

    Notice comes from an autoscaler or `ray drain-node`.
    """
    now = time.time()
    return {node: max(0.0, deadline / 1e3 - now) for node, deadline in state.get_draining_nodes().items()}
