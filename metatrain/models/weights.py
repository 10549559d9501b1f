"""Match the tensors of a state dict with the parameters of a network, by name and shape."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.models.model import BODY, HEAD, Model
from metatrain.models.protocol import ADDED, NONE, Architecture
from metatrain.types import Params
from metatrain.validation import require

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Last parts of the names of what torch's batch normalisation keeps beside its parameters."""
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Further classifiers of googlenet and inception_v3, which only their own training uses."""
_SHOWN = 3


class Matched(NamedTuple):
    """The parameters that a state dict gives a network, and a phrase for each kind of tensor that was left out."""

    params: Params
    left_out: list[str]


def match_weights(given: Mapping[str, Tensor], model: Model, architecture: Architecture, wanted: Params) -> Matched:
    """Return the values in `given` of the parameters `wanted`, of the types there; running statistics are left out.

    Names may have the prefix "model.body." or not. A head of another size, or none, leaves the head as it is.
    ValueError: the body lacks a tensor, has one of another shape or with values that are not finite, or `given` holds
    others.
    """
    given = _without_wrapper(given)
    names, found, left = _names_in_files(model, architecture), {}, []
    lacking, misshapen, used = [], [], set()
    for name, value in model.initial().items():
        at = next((alias for alias in names[name] if alias in given), None)
        used |= {at}
        if at is None or given[at].shape != value.shape:
            if name.startswith(HEAD):
                left.append(f"{name} is as initialised ({_shape_in_file(None if at is None else given[at], value)})")
            elif at is None:
                lacking.append(name.removeprefix(BODY))
            else:
                misshapen.append(f"{at} is {list(given[at].shape)} and not {list(value.shape)}")
        elif name not in wanted:
            left.append(f"{name} is left out: this algorithm learns no head")
        else:
            found[name] = _converted(given[at], wanted[name], at)
    rest = [name for name in given if name not in used]
    statistics = [name for name in rest if name.rpartition(".")[2] in _STATISTICS]
    others = [name for name in rest if name not in statistics and not name.startswith(_AUXILIARY)]
    if architecture.head == ADDED and _is_one_layer(others):
        left.append(f"the file's own head ({_few(others)}) is left out")
        others = []
    problems = [f"lacks {_few(lacking)}"] if lacking else []
    problems += [f"holds {_few(others)}, which the network has not"] if others else []
    problems += [_few(misshapen)] if misshapen else []
    require(not problems, "; ".join(problems))
    if statistics:
        left.append(f"{len(statistics)} running statistics are left out: a task's own are used")
    return Matched(found, left)


def _names_in_files(model: Model, architecture: Architecture) -> dict[str, list[str]]:
    """Return the names that each parameter of the network may have in a state dict."""
    head = getattr(model.body, "head_name", architecture.head)
    found: dict[str, list[str]] = {}
    for name in model.initial():
        if name.startswith(HEAD):
            last = name.removeprefix(HEAD)
            own = [] if head in (ADDED, NONE) else [f"{head}.{last}"]
            found[name] = [name, *own, f"head.{last}"]
        else:
            plain = name.removeprefix(BODY)
            found[name] = [name, plain, *([plain.removeprefix("trunk.")] if hasattr(model.body, "head_name") else [])]
    return found


def _without_wrapper(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the "module." that torch's DataParallel puts before every name."""
    wrapped = bool(given) and all(name.startswith("module.") for name in given)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in given.items()}


def _converted(value: Tensor, like: Tensor, name: str) -> Tensor:
    require(value.is_floating_point(), f"{name} is {value.dtype}, and a weight is a floating-point number")
    require(bool(torch.isfinite(value).all()), f"{name} holds values that are not finite")
    return value.detach().to(like.dtype).clone()


def _shape_in_file(value: Tensor | None, wanted: Tensor) -> str:
    return "the file has none" if value is None else f"{list(wanted.shape)}, and {list(value.shape)} in the file"


def _is_one_layer(names: Sequence[str]) -> bool:
    """Return whether these are the weight and the bias of one layer."""
    parts = [name.rpartition(".") for name in names]
    return bool(parts) and len({owner for owner, *_ in parts}) == 1 and {last for *_, last in parts} <= _LAYER


_LAYER = {"weight", "bias"}


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(_shortened(names[:_SHOWN])) + more


def _shortened(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield name if len(name) <= 100 else f"{name[:100]}…"
