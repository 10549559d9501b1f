"""Ask Ray which nodes of its cluster are about to leave."""

import time

from ray._private.state import state  # Ray has no public API for draining nodes; Ray Serve uses the same one


def leaving_nodes() -> dict[str, float]:
    """Return the seconds left to each draining node, by node id: a spot machine given notice, one being scaled down.

    Notice comes from an autoscaler or `ray drain-node`.
    """
    now = time.time()
    return {node: max(0.0, deadline / 1e3 - now) for node, deadline in state.get_draining_nodes().items()}
