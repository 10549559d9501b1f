"""Describe a training step on up to a thousand workers: what costs time, who computes, where the time goes.

`scale_simulation.py` simulates such steps as discrete events, without Ray.

The driver is one thread: it broadcasts, gives blocks to workers with fewer than IN_FLIGHT calls, waits, and receives
replies one at a time. Blocks, capacities and overdue replies are decided by the project's own `WorkQueue`,
`WorkerHandle` and `Pace`, so block sizes, stealing and repeated work are those of a run; only time is simulated.
With W workers, step time T, tasks of t seconds and parameter vectors of B bytes:

    efficiency = Σ t / (W · T)            1 = efficiency + Σ shares, the worker seconds lost by cause:
    broadcast    flatten, put, and waiting for the vector          driver      waiting for a call or for the last reply
    stragglers   waiting for other workers' last blocks            repeated    slow workers' extra and repeated time
    unpacking    a worker's time per call apart from tasks         lost        dead workers, until replaced
    optimiser    unpack, finite check and optimiser step

Assumed: every node fetches a large vector from the driver's node, whose link serves one at a time; the driver fetches a
large reply when it takes it (`ray.wait(fetch_local=False)`, then `ray.get`), and does nothing else meanwhile; its own
link is what limits several that are fetched at once. Left out: recording, validation, sampling ahead of the next step,
and silent workers (`executor.timeout`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.worker_pool import IN_FLIGHT
from metatrain.training.tree_sum import Block

Floats = NDArray[np.float64]
CAUSES = ("broadcast", "driver", "stragglers", "repeated", "unpacking", "lost", "optimiser")


class Costs(NamedTuple):
    """Times of the driver, the workers and the network: seconds, seconds per byte, bytes per second."""

    prepare: float = 0.0
    """Flatten and put, once per step."""
    prepare_byte: float = 0.0
    call: float = 0.0
    """Submit one call."""
    call_byte: float = 0.0
    """Serialise the vector into a call, if it travels in messages."""
    turn: float = 0.0
    """One turn of the driver's loop: wait for replies, look for free workers."""
    turn_flying: float = 0.0
    """The same, for each call in flight."""
    reply: float = 0.0
    """Receive one reply and add its sum."""
    reply_byte: float = 0.0
    finish: float = 0.0
    """Unpack, check and optimise, once per step."""
    finish_byte: float = 0.0
    work: float = 0.0
    """A worker's time per call, apart from its tasks."""
    work_byte: float = 0.0
    latency: float = 0.0
    """One way, between driver and worker."""
    pull: float = 0.0
    """Fetch an object from another node, apart from its bytes."""
    driver_link: float = math.inf
    """Bytes per second, in each direction."""
    node_link: float = math.inf


class Machines(NamedTuple):
    """The workers of a cluster: their nodes, stragglers and faults.

    slow_share of the workers take slow_factor times as long. Each is lost `lost_per_hour` times; the driver notices
    after `noticed` seconds, and another worker is ready `restart` seconds later.
    """

    workers: int
    per_node: int = 8
    slow_share: float = 0.0
    slow_factor: float = 1.0
    lost_per_hour: float = 0.0
    noticed: float = 1.0
    restart: float = 30.0
    inline_bytes: int = 100 * 1024
    """Smaller vectors travel in messages (`max_inline_bytes`)."""


class Work(NamedTuple):
    """A step's work: bytes of the parameters, tasks in shards, and a sample of seconds per task to draw from."""

    vector_bytes: float
    tasks_per_step: int
    shard_size: int
    task_seconds: Sequence[float]


class Step(NamedTuple):
    """One simulated step."""

    seconds: float
    efficiency: float
    shares: dict[str, float]
    """Of all worker seconds, by CAUSES."""
    messages: int
    busy: dict[str, float]
    """Seconds of the driver by "messages" and "bytes"."""
    blocks: list[Block]
    """Whose results count."""


def log_normal(mean: float, spread: float, count: int = 1000, seed: int = 0) -> list[float]:
    """Return a sample of a log-normal distribution: exp(μ + σz), of `mean` seconds, deviation spread · mean."""
    variance = math.log1p(spread**2)
    z = np.random.default_rng(seed).standard_normal(count)
    return [float(value) for value in mean * np.exp(math.sqrt(variance) * z - variance / 2)]


def draw_seconds(work: Work, step: int, seed: int = 0) -> Floats:
    """Return the seconds of every task of a step, drawn from the sample, by (seed, step)."""
    return np.random.default_rng([seed, step]).choice(work.task_seconds, work.tasks_per_step)


def driver_limit(costs: Costs, work: Work, tasks_per_worker: int) -> float:
    """Return the number of workers W above which the driver is busier than they are.

    With one reply per worker and step, IN_FLIGHT·W calls in flight and replies of B bytes,

        k·t = W·(c + v·IN_FLIGHT·W)      c = call + turn + reply + B·reply_byte, and pull + B/link for large vectors

    for k tasks of t seconds per worker. More replies per worker lower it. Infinite where messages cost nothing.
    """
    computing = tasks_per_worker * float(np.mean(work.task_seconds))
    linear = seconds_per_reply(costs, work.vector_bytes)
    quadratic = IN_FLIGHT * costs.turn_flying
    # The positive root, in the form that does not divide by a small v.
    below = linear + math.sqrt(linear**2 + 4 * quadratic * computing)
    return 2 * computing / below if below else math.inf


def seconds_per_reply(costs: Costs, vector_bytes: float) -> float:
    """Return how long one call and its reply occupy the driver, apart from the growth with calls in flight: c above."""
    network = costs.pull + vector_bytes / min(costs.driver_link, costs.node_link)
    return costs.call + costs.turn + costs.reply + costs.reply_byte * vector_bytes + network


def binds(step: Step) -> str:
    """Name the largest loss of a step; for the driver, what occupies it more: "messages" or "bytes"."""
    shares = step.shares | {"stragglers": step.shares["stragglers"] + step.shares["repeated"], "repeated": 0.0}
    worst = max(shares, key=lambda cause: shares[cause])
    return worst if worst != "driver" else f"driver {max(step.busy, key=lambda kind: step.busy[kind])}"
