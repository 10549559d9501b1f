"""Pack a tree of tensors and plain values into one tensor of bytes, copied once, and read it without a copy.

8 bytes: the length of the form | the form: the tree without its tensors' numbers, by `torch.save`
| the numbers of each tensor, where a multiple of 64 begins, as torch aligns memory
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

_ALIGNMENT = 64
_LENGTH = 8


class Form(NamedTuple):
    """How a tensor is written, and which leaf of the tree it is."""

    leaf: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def place(self, written: Tensor, start: int) -> Tensor:
        """Return the tensor whose numbers are the bytes from `start`, with a storage of its own over them."""
        if not self.bytes:
            return torch.empty_strided(self.shape, self.strides, dtype=self.dtype)
        part = torch.from_numpy(written.numpy()[start : start + self.bytes])
        return part.view(self.dtype).as_strided(self.shape, self.strides)

    @property
    def bytes(self) -> int:
        """Return how many bytes its numbers take."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Packed(NamedTuple):
    """A tree that is ready to be written."""

    head: bytes
    tensors: Sequence[Tensor]
    forms: Sequence[Form]

    @property
    def size(self) -> int:
        """Return how many bytes it takes."""
        *_, end = _starts(len(self.head), self.forms)
        return end

    def as_bytes(self, size: int) -> Tensor:
        """Return it as bytes [size], of which those after its own are undefined."""
        written = torch.empty(size, dtype=torch.uint8)
        written[:_LENGTH].view(torch.int64)[0] = len(self.head)
        written[_LENGTH : _LENGTH + len(self.head)] = torch.frombuffer(bytearray(self.head), dtype=torch.uint8)
        for start, form, tensor in zip(_starts(len(self.head), self.forms), self.forms, self.tensors, strict=False):
            form.place(written, start).copy_(tensor)
        return written


def pack(tree: Any) -> Packed:
    """Prepare a tree. Its tensors keep their order in memory, those with gaps or repeats without them."""
    leaves, structure = tree_flatten(tree)
    tensors = {number: leaf.detach() for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    forms = [
        Form(number, tensor.dtype, tuple(tensor.shape), torch.empty_like(tensor, device="meta").stride())
        for number, tensor in tensors.items()
    ]
    plain = tree_unflatten([0 if number in tensors else leaf for number, leaf in enumerate(leaves)], structure)
    head = io.BytesIO()
    torch.save((plain, [tuple(form) for form in forms]), head)
    return Packed(head.getvalue(), list(tensors.values()), forms)


def read(written: Tensor) -> Any:
    """Return the tree of bytes on the CPU; its tensors lie in their memory."""
    length = int(written[:_LENGTH].view(torch.int64)[0])
    head = io.BytesIO(written[_LENGTH : _LENGTH + length].numpy().tobytes())
    plain, found = torch.load(head, weights_only=True)
    leaves, structure = tree_flatten(plain)
    forms = [Form(*form) for form in found]
    for start, form in zip(_starts(length, forms), forms, strict=False):
        leaves[form.leaf] = form.place(written, start)
    return tree_unflatten(leaves, structure)


def _starts(head: int, forms: Sequence[Form]) -> Iterator[int]:
    """Yield where the numbers of each tensor begin, and at last where those of another would."""
    start = _aligned(_LENGTH + head)
    for form in forms:
        yield start
        start = _aligned(start + form.bytes)
    yield start


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT
