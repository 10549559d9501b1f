"""Read the best parameters of a run, checked, without importing anything that the run names."""

from typing import Any, Literal, NotRequired, TypedDict

from metatrain.runs import checkpoints
from metatrain.runs.run import Run
from metatrain.training.snapshots import check_snapshot
from metatrain.types import Params
from tasks.io.json_documents import check_json

_Shapes = list[int] | dict[str, list[int]]


class _Spec(TypedDict):
    """A `TaskSpec` as JSON, as far as it is read; earlier versions noted less."""

    kind: Literal["classification", "regression"]
    ways: int | None
    x: _Shapes
    y: list[int]
    support: NotRequired[_Shapes | None]
    missing: NotRequired[bool]


class _Noted(TypedDict):
    """What a manifest notes of a checkpoint."""

    spec: _Spec


def best_params(home: Run) -> tuple[Params, int, dict[str, Any]]:
    """Return the best parameters by validation (else the newest), the newest step, and the manifest's `extra`.

    ValueError: there is no checkpoint, or it is damaged.
    """
    found = checkpoints.newest(home.checkpoints)
    if found is None:
        raise ValueError(f"{home.where}: holds no checkpoint yet: go on with `metatrain train --resume {home.where}`")
    best = check_snapshot(found.snapshot, found.step)["best"]["step"]
    step = best if best >= 0 else found.step
    params = check_snapshot(checkpoints.load(home.checkpoints, step), step)["params"]
    noted = checkpoints.manifest(home.checkpoints, step)["extra"]
    where = f"{home.where}: the manifest of its checkpoint"
    return params, found.step, check_json(noted, _Noted, where, "restore that checkpoint")
