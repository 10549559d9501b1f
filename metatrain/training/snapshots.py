"""Check that a snapshot out of a checkpoint is one of this run: names, shapes and types of all that training needs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_STATE = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}
"""What each optimiser keeps of a parameter."""
_FREE = ("lr", "initial_lr", "momentum", "weight_decay", "params")
"""Hyperparameters that a run may change."""
_REMEDY = "restore that checkpoint, or remove it to go on from an earlier one"


def check_snapshot(snapshot: Any, step: int) -> dict[str, Any]:
    """Return the snapshot of `step` after checking its shape; its parameters may be any. ValueError: it has another."""
    parts = {"step": int, "next_task": int, "params": dict, "optimizers": dict, "best": dict}
    require_snapshot(isinstance(snapshot, dict), step, "holds no snapshot")
    for name, kind in parts.items():
        require_snapshot(type(snapshot.get(name)) is kind, step, f"{name} is missing or no {kind.__name__}")
    require_snapshot(snapshot["step"] == step, step, "is of another step")
    require_snapshot(0 <= snapshot["next_task"] < 2**53, step, "next_task is out of range")
    best = snapshot["best"]
    require_snapshot(best.keys() == {"step", "score"}, step, "best has no step and score")
    require_snapshot(type(best["step"]) is int and type(best["score"]) is float, step, "best is no step and score")
    require_snapshot(-1 <= best["step"] <= step, step, "best is of a later step")
    for name, value in snapshot["params"].items():
        plain = isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        require_snapshot(plain and value.device.type == "cpu", step, f"params[{str(name)[:80]!r}] is no tensor")
    checked: dict[str, Any] = snapshot
    return checked


def check_optimizer(found: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Check that `found`, out of the snapshot of `step`, is a state of `optimizer`. ValueError: it is of another."""
    fresh = optimizer.state_dict()
    whole = isinstance(found, dict) and isinstance(found.get("state"), dict)
    groups = found.get("param_groups") if whole else None
    whole = isinstance(groups, list) and len(groups) == len(fresh["param_groups"])
    require_snapshot(whole, step, "optimizers hold no state of this optimiser")
    for now, kept in zip(fresh["param_groups"], groups or (), strict=True):
        _check_group(kept, now, step)
    leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    wanted = _STATE[type(optimizer)]
    for number, kept in found["state"].items():
        known = type(number) is int and 0 <= number < len(leaves) and isinstance(kept, dict) and kept.keys() == wanted
        require_snapshot(known, step, "optimizers hold the state of other parameters")
        for name, value in kept.items():
            shape = torch.Size() if name == "step" else leaves[number].shape
            fits = isinstance(value, Tensor) and value.shape == shape and value.dtype.is_floating_point
            fits = fits and value.layout == torch.strided and value.device.type == "cpu"
            require_snapshot(fits or (name == "momentum_buffer" and value is None), step, f"optimizers: {name} differs")


def _check_group(kept: Any, now: Mapping[str, Any], step: int) -> None:
    members = kept.get("params") if isinstance(kept, dict) else None
    plain = isinstance(members, list) and all(type(member) is int for member in members)
    require_snapshot(plain and members == now["params"], step, "optimizers are of others")
    for name, value in now.items():
        found = kept.get(name, value)
        if name in _FREE[:-1]:
            require_snapshot(isinstance(found, (int, float)), step, f"optimizers: {name} is no number")
        else:
            same = type(found) is type(value) and found == value
            require_snapshot(same, step, f"optimizers: {name} differs from this optimiser's")


def require_snapshot(holds: bool, step: int, wrong: str) -> None:
    """Raise ValueError that the checkpoint of `step` is wrong, unless `holds`."""
    if not holds:
        raise ValueError(f"the checkpoint of step {step}: {wrong}: {_REMEDY}")


def check_params(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], step: int) -> None:
    """Check that the parameters `found` have the names, shapes and types `wanted`. ValueError: they differ."""
    for name in sorted(found.keys() | wanted.keys()):
        one, other = found.get(name), wanted.get(name)
        same = one is not None and other is not None and one.shape == other.shape and one.dtype == other.dtype
        require_snapshot(same, step, f"params[{name[:80]!r}] is {_describe(one)}, not {_describe(other)}")


def _describe(value: Tensor | None) -> str:
    return "absent" if value is None else f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
