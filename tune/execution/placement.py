"""What a trial needs, and whether a cluster has it."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metatrain.settings import ExecutorSettings

Bundle = dict[str, float]
_EPS = 1e-9
_LOOK_S = 120.0
"""How long nodes may take to look for a file: a process starts on each."""


class TrialResources(NamedTuple):
    """The bundles of a trial's placement group: its own process first, then each of its workers."""

    bundles: tuple[Bundle, ...]

    def placement(self) -> Any:
        """As Tune wants it."""
        return tune.PlacementGroupFactory([dict(bundle) for bundle in self.bundles])

    def total(self) -> Bundle:
        """All bundles together."""
        kinds = sorted({kind for bundle in self.bundles for kind in bundle})
        return {kind: sum(bundle.get(kind, 0.0) for bundle in self.bundles) for kind in kinds}


def trial_resources(settings: ExecutorSettings, cpus: float) -> TrialResources:
    """Of a trial whose own process has `cpus`; in process it does the work itself, and takes the GPU."""
    gpus = {"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {}
    if settings.name == "in_process":
        return TrialResources(({"CPU": cpus, **gpus},))
    return TrialResources(({"CPU": cpus}, *({"CPU": 1.0, **gpus} for _ in range(settings.max_workers))))


def max_concurrent_trials(needed: TrialResources, wanted: int, grows: bool = False) -> int:
    """How many trials run at the same time on the cluster that is connected: `wanted`, or as many as there is room for.

    grows: an autoscaler brings more nodes when it is asked to, so that one trial may wait for them. ValueError: not
    even one has room.
    """
    free, room = _nodes(), 0
    while (room < wanted or not wanted) and place_bundles(needed.bundles, free):
        room += 1
    if not room and grows:
        return wanted or 1
    remedy = "lower executor.workers, executor.gpus_per_worker or search.cpus, or search on a larger cluster"
    if not room:
        raise ValueError(f"search: {explain_shortage(needed)}: {remedy}")
    return room


def explain_shortage(needed: TrialResources) -> str | None:
    """Why the cluster, were it idle, would have no room for one trial; None where it has."""
    there, total = _nodes(), needed.total()
    if place_bundles(needed.bundles, [dict(node) for node in there]):
        return None
    have = {kind: sum(node.get(kind, 0.0) for node in there) for kind in total}
    wants, has = (" and ".join(f"{bundle[kind]:g} {kind}s" for kind in total) for bundle in (total, have))
    if all(have[kind] >= total[kind] for kind in total):
        wants += f" in {len(needed.bundles)} processes, each whole on a node"
    return f"a trial needs {wants}, the cluster has {has} on {len(there)} node{'s' * (len(there) != 1)}"


def count_nodes_without(folder: Path) -> int:
    """How many nodes of the cluster have no such folder, or another one of that name; it is made here."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(nodes) == 1:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".seen-{secrets.token_hex(8)}"
    probe.touch()
    try:
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        asked = [_sees.options(scheduling_strategy=one).remote(str(probe)) for one in there]
        return ray.get(asked, timeout=_LOOK_S).count(False)
    finally:
        probe.unlink()


@ray.remote(num_cpus=0)
def _sees(path: str) -> bool:
    return Path(path).exists()


def _nodes() -> list[Bundle]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def place_bundles(bundles: Sequence[Bundle], free: list[Bundle]) -> bool:
    """Whether each bundle finds a node, the largest first; what they take is taken from `free`."""
    for bundle in sorted(bundles, key=lambda one: sum(one.values()), reverse=True):
        node = next((one for one in free if all(one.get(kind, 0.0) >= bundle[kind] - _EPS for kind in bundle)), None)
        if node is None:
            return False
        for kind, amount in bundle.items():
            node[kind] -= amount
    return True
