"""Checkpoint activations: keep the inputs of a network's blocks, and compute each block again where it is transposed.

`torch.utils.checkpoint` does not work within `torch.func`. Here the transpose of a checkpointed function is itself a
checkpointed function, so derivatives of every order keep inputs alone (Chen et al. 2016, for any order). Nothing
random has to be restored: masks are buffers that hash a task's key, and buffers are inputs of a block.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from metatrain.validation import require

Tensors = tuple[Tensor, ...]
Flat = Callable[..., Tensors]
"""A function of tensors alone, which returns a tuple of them."""


def checkpointed(function: Flat, *inputs: Tensor) -> Tensors:
    """Return `function(*inputs)`, of which derivatives of every order keep the inputs alone.

    The function is called again wherever it is differentiated, in the context (`contextvars`) of this call.
    """
    found: Tensors = _Checkpointed.apply(partial(_run_in, copy_context(), function), *inputs)
    return found


def _run_in(context: Any, function: Flat, *inputs: Tensor) -> Tensors:
    """Return `function(*inputs)` computed in a copy of `context`: a context cannot be entered twice at once."""
    found: Tensors = context.copy().run(function, *inputs)
    return found


class _Checkpointed(Function):
    """Apply a function, and keep its inputs."""

    @staticmethod
    def forward(function: Flat, *inputs: Tensor) -> Tensors:
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensors) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *adjoints: Tensor) -> Any:
        inputs = ctx.saved_tensors
        wanted = [number for number, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        found = iter(_Checkpointed.apply(_transpose(ctx.function, len(inputs), wanted), *inputs, *adjoints))
        chosen = set(wanted)
        return None, *(next(found) if number in chosen else None for number in range(len(inputs)))

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], function: Flat, *inputs: Tensor) -> tuple[Tensors, Any]:
        found = _Checkpointed.apply(vmap(function, in_dims=tuple(in_dims[1:])), *inputs)
        return found, tuple(0 for _ in found)


def _transpose(function: Flat, count: int, wanted: Sequence[int]) -> Flat:
    """Return (x_1 … x_count, λ) -> (∂function/∂x_i)ᵀ λ for the numbers i that are `wanted`."""

    def pull(*given: Tensor) -> Tensors:
        inputs, adjoints = list(given[:count]), given[count:]

        def of_wanted(*chosen: Tensor) -> Tensors:
            every = list(inputs)
            for number, value in zip(wanted, chosen, strict=True):
                every[number] = value
            return function(*every)

        transposed = vjp(of_wanted, *(inputs[number] for number in wanted))[1]
        return transposed(adjoints, retain_graph=False)  # type: ignore[no-any-return]

    return pull


def checkpoint_blocks(body: nn.Module, model_name: str) -> int:
    """Have the blocks of `body` keep their inputs alone, from now on; return how many blocks there are.

    A block is a layer with matrices or filters and what follows it, such as its normalisation and ReLU, in the
    outermost `nn.Sequential`s that have two or more of them: of ResNet-12 a residual block. ValueError: there is none.
    """
    sequences = _sequences_of(body)
    none = f"engine.activation_checkpointing: {model_name} has no nn.Sequential of two or more layers with weights"
    require(bool(sequences), f"{none}, whose activations could be computed again: set it to off")
    for sequence in sequences:
        setattr(sequence, "forward", partial(_run_blocks, _blocks_of(sequence)))  # noqa: B010 - mypy refuses the other
    return sum(len(_blocks_of(sequence)) for sequence in sequences)


def _sequences_of(module: nn.Module) -> list[nn.Sequential]:
    """Return the outermost sequences of two or more blocks within `module`, itself included."""
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    if plain and len(_blocks_of(module)) > 1:  # type: ignore[arg-type]
        return [module]  # type: ignore[list-item]
    return [found for child in module.children() for found in _sequences_of(child)]


def _blocks_of(sequence: nn.Sequential) -> list[nn.Sequential]:
    """Return the parts of `sequence`, each beginning with a layer that has matrices (the first: at its start).

    They have the layers under the names that these have in `sequence`.
    """
    blocks: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
    for name, layer in sequence.named_children():
        if any(_has_matrices(one) for one in blocks[-1].values()) and _has_matrices(layer):
            blocks.append(OrderedDict())
        blocks[-1][name] = layer
    return [nn.Sequential(block) for block in blocks]


def _has_matrices(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _run_blocks(blocks: Sequence[nn.Sequential], x: Any) -> Any:
    for block in blocks:
        x = _run_block(block, x)
    return x


def _run_block(block: nn.Sequential, x: Any) -> Any:
    """Return `block(x)`, checkpointed: of x, of the parameters that it has now, and of its buffers."""
    given = dict(block.named_parameters()) | dict(block.named_buffers())
    leaves, layout = tree_flatten((given, x))
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return block(x)
    shapes: list[Any] = []

    def flat(*leaves: Tensor) -> Tensors:
        tensors, x = tree_unflatten(list(leaves), layout)
        found, shape = tree_flatten(functional_call(block, tensors, (x,)))
        shapes[:] = [shape]
        return tuple(found)

    found = checkpointed(flat, *leaves)
    return tree_unflatten(list(found), shapes[0])
