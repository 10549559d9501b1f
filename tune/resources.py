"""What a trial needs, and whether a cluster has it."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ray
from ray import tune

from metatrain.checks import require
from metatrain.settings import ExecutorSettings

Bundle = dict[str, float]


class Needs(NamedTuple):
    """The bundles of a trial's placement group: its own process first, then each of its workers."""

    bundles: tuple[Bundle, ...]

    def placement(self) -> Any:
        """As Tune wants it."""
        return tune.PlacementGroupFactory([dict(bundle) for bundle in self.bundles])

    def total(self) -> Bundle:
        """All bundles together."""
        kinds = sorted({kind for bundle in self.bundles for kind in bundle})
        return {kind: sum(bundle.get(kind, 0.0) for bundle in self.bundles) for kind in kinds}


def needs(settings: ExecutorSettings, cpus: float) -> Needs:
    """Of a trial whose own process has `cpus`; in process it does the work itself, and takes the GPU."""
    gpus = {"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {}
    if settings.name == "in_process":
        return Needs(({"CPU": cpus, **gpus},))
    return Needs(({"CPU": cpus}, *({"CPU": 1.0, **gpus} for _ in range(settings.most_workers))))


def at_once(needed: Needs, wanted: int) -> int:
    """How many trials run at the same time on the cluster that is connected: `wanted`, or as many as there is room for.

    ValueError: not even one has room.
    """
    problem = lacking(needed)
    remedy = "lower executor.workers, executor.gpus_per_worker or search.cpus, or search on a larger cluster"
    require(problem is None, f"search: {problem}: {remedy}")
    total, have = needed.total(), _together(needed.total(), _nodes())
    room = min(int(have[kind] / amount) for kind, amount in total.items())
    return min(wanted, room) if wanted else room


def lacking(needed: Needs) -> str | None:
    """Why the cluster, were it idle, would have no room for one trial; None where it has."""
    there, total = _nodes(), needed.total()
    have = _together(total, there)
    each = all(any(_holds(node, bundle) for node in there) for bundle in needed.bundles)
    if each and _holds(have, total):
        return None
    wants, has = (" and ".join(f"{bundle[kind]:g} {kind}s" for kind in total) for bundle in (total, have))
    return f"a trial needs {wants}, the cluster has {has} on {len(there)} node{'s' * (len(there) != 1)}"


def _nodes() -> list[Bundle]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _together(kinds: Iterable[str], nodes: Sequence[Bundle]) -> Bundle:
    return {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in kinds}


def _holds(there: Bundle, bundle: Bundle) -> bool:
    return all(there.get(kind, 0.0) >= amount for kind, amount in bundle.items())
