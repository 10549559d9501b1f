"""Compute the resources of a trial and how many trials the Ray cluster has room for."""

import secrets
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metatrain.settings import ExecutorSettings

Bundle = dict[str, float]
TrialResources = Sequence[Bundle]
"""The bundles of a trial's placement group: its own process first, then each of its workers."""
_EPS = 1e-9
_LOOK_S = 120.0
"""How long nodes may take to look for a file: a process starts on each."""


def trial_resources(settings: ExecutorSettings, cpus: float) -> TrialResources:
    """Compute the bundles of a trial whose own process has `cpus`; in process it does the work itself and takes the
    GPU.
    """
    gpus = {"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {}
    if settings.name == "in_process":
        return [{"CPU": cpus, **gpus}]
    return [{"CPU": cpus}, *({"CPU": 1.0, **gpus} for _ in range(settings.max_workers))]


def max_concurrent_trials(needed: TrialResources, wanted: int, grows: bool = False) -> int:
    """Return how many trials run at the same time on the connected cluster: `wanted`, or as many as there is room for.

    grows: an autoscaler adds nodes on demand, so that one trial may wait for them. ValueError: not even one has room.
    """
    free, room = _node_resources(), 0
    while (room < wanted or not wanted) and place_bundles(needed, free):
        room += 1
    if not room and grows:
        return wanted or 1
    remedy = "lower executor.workers, executor.gpus_per_worker or search.cpus, or search on a larger cluster"
    if not room:
        raise ValueError(f"search: {explain_shortage(needed)}: {remedy}")
    return room


def explain_shortage(needed: TrialResources) -> str | None:
    """Explain why the cluster, even if idle, has no room for one trial; None if it has."""
    there = _node_resources()
    if place_bundles(needed, [dict(node) for node in there]):
        return None
    kinds = sorted({kind for bundle in needed for kind in bundle})
    total, have = ({kind: sum(one.get(kind, 0.0) for one in bundles) for kind in kinds} for bundles in (needed, there))
    wants, has = (" and ".join(f"{bundle[kind]:g} {kind}s" for kind in kinds) for bundle in (total, have))
    if all(have[kind] >= total[kind] for kind in kinds):
        wants += f" in {len(needed)} processes, each whole on a node"
    return f"a trial needs {wants}, the cluster has {has} on {len(there)} node{'s' * (len(there) != 1)}"


def count_nodes_without(folder: Path) -> int:
    """Count the cluster's nodes that do not see this folder, or see another of that name; create it here."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(nodes) == 1:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".seen-{secrets.token_hex(8)}"
    probe.touch()
    try:
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        asked = [_has_file.options(scheduling_strategy=one).remote(str(probe)) for one in there]
        return ray.get(asked, timeout=_LOOK_S).count(False)
    finally:
        probe.unlink()


@ray.remote(num_cpus=0)
def _has_file(path: str) -> bool:
    return Path(path).exists()


def _node_resources() -> list[Bundle]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def place_bundles(bundles: Sequence[Bundle], free: list[Bundle]) -> bool:
    """Place each bundle on a node, the largest first, and subtract it from `free`; return whether all found one."""
    for bundle in sorted(bundles, key=lambda one: sum(one.values()), reverse=True):
        node = next((one for one in free if all(one.get(kind, 0.0) >= bundle[kind] - _EPS for kind in bundle)), None)
        if node is None:
            return False
        for kind, amount in bundle.items():
            node[kind] -= amount
    return True
