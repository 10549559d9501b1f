"""Try a module as built: is it a pure function of parameters and input, and does one example move another's output?"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from metatrain.models.dropout import uniform
from metatrain.models.normalization import mixes_examples, reference_statistics
from metatrain.models.protocol import Architecture
from metatrain.types import Params
from metatrain.validation import require
from tasks.plugins import USER_CODE_ERRORS, describe_error
from tasks.types import Shape, Shapes, TaskSpec, Tree, map_shapes


def probe(body: nn.Module, spec: TaskSpec) -> Tensor:
    """Return `body`'s outputs for two examples; ValueError unless it maps [B, *x] to [B, D] without side effects."""
    before = {name: buffer.clone() for name, buffer in body.named_buffers()}
    scratch = {name: buffer.clone() for name, buffer in before.items()}
    x = map_shapes(lambda shape: torch.linspace(0, 1, 2 * math.prod(shape)).view(2, *shape), spec.x)
    with _Draws() as draws:
        y = _call(body, x, scratch)
    written = [name for name in before if not torch.equal(before[name], scratch[name])]
    require(
        not written,
        f"model.name: the module writes to its buffers ({', '.join(written[:3])}), so that tasks would leak into each "
        "other: set track_running_stats=False in normalisation layers, or use metatrain.models.TaskNorm",
    )
    require(
        not draws.found,
        f"model.name: the module draws from torch's global generator ({_describe_random_layers(body)}), so that "
        "results would depend on which worker ran what: use "
        "metatrain.models.Dropout, which draws from the task's own address",
    )
    require(
        isinstance(y, Tensor) and y.dim() == 2 and len(y) == 2,
        f"model.name: the module maps {_shapes_of(x)} to {tuple(getattr(y, 'shape', ()))}; it must return [B, D]: end "
        "it with nn.Flatten()",
    )
    return y


def _shapes_of(x: Tree) -> Shapes:
    return tree_map(lambda leaf: tuple(leaf.shape), x)


def _call(body: nn.Module, x: Tree, buffers: Params | None = None) -> Tensor:
    """Return the outputs of a module as built. ValueError: it raises."""
    try:
        with torch.no_grad():
            return functional_call(body, buffers or {}, (x,))  # type: ignore[no-any-return]
    except USER_CODE_ERRORS as error:
        remedy = "fix it, or set a model that reads such tasks"
        raise ValueError(
            f"model.name: the module does not accept a batch {_shapes_of(x)} ({describe_error(error)}): {remedy}"
        ) from error


def _describe_random_layers(body: nn.Module) -> str:
    layers = [(name, type(m).__name__) for name, m in body.named_modules() if not list(m.children())]
    names = [f"{name}: {kind}" for name, kind in layers if "drop" in kind.lower()]
    return ", ".join(names[:3]) or "somewhere in its forward"


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notice operations of this thread, and of no other, that draw from torch's global generator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **(kwargs or {}))
        # With some arguments, such as a rate of zero, such operations draw nothing.
        before = torch.random.get_rng_state()
        outputs = function(*args, **(kwargs or {}))
        self.found |= not torch.equal(before, torch.random.get_rng_state())
        return outputs


def _draw(shape: Shape) -> Tensor:
    return uniform(torch.tensor(1), torch.Size((4, *shape)), torch.device("cpu")).to(torch.get_default_dtype())


def describe_mixing(architecture: Architecture, body: nn.Module, spec: TaskSpec) -> str:
    """Return the part of a module by which examples influence each other even with given statistics; "" if none."""
    if hasattr(architecture, "normalization"):  # of ours: TaskNorm is the one layer that reads several examples
        return ""
    layers = [
        f"{name or 'module'}: {type(m).__name__}" for name, m in body.named_modules() if isinstance(m, _BatchNorm)
    ]
    if layers:
        return ", ".join(layers[:3])
    x = map_shapes(_draw, spec.x)

    def after_the_first_two(queries: Tree) -> Tensor:
        return _call(body, tree_map(lambda leaf, query: torch.cat([leaf[:2], query]), x, queries))[2:]

    with reference_statistics(2):
        mixes = mixes_examples(after_the_first_two, tree_map(lambda leaf: leaf[2:], x))
    return "somewhere in its forward" if mixes else ""
