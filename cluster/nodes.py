"""What Ray knows of the nodes of its cluster."""

import time

from ray._private.state import state  # Ray has no public way to learn which nodes are to leave; Serve asks the same


def leaving_nodes() -> dict[str, float]:
    """Seconds left to each node that is about to leave, by its id: a spot machine given notice, one being scaled down.

    Who gives notice is the cluster: an autoscaler, or `ray drain-node`.
    """
    now = time.time()
    return {node: max(0.0, deadline / 1e3 - now) for node, deadline in state.get_draining_nodes().items()}
