"""Read a state.pt that a stranger may have written: tensors and plain values, and no more memory than the file takes.

torch.load with weights_only runs no code, but it unpacks what is compressed, reserves what is announced, and reads
tensors that are larger than their bytes. torch.save writes none of these.
"""

import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LARGEST_TREE = 64 * 2**20
"""Bytes of the tree without its tensors' content."""
_DEEPEST = 20
_TYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_ALLOWED = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
    "torch Size",
    "_codecs encode",
    *(f"torch {kind}Storage" for kind in _TYPES),
    *(f"torch {kind}" for kind in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool", "uint8")),
}
"""Names in the pickle of what a checkpoint holds."""
_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
)
"""Errors that damaged and forged files raise."""


class UnreadableState(ValueError):
    """Report a state.pt that torch.save did not write. The message says why, in a phrase."""


def read_state(path: Path) -> Any:
    """Return the tree in a state.pt, on the CPU. UnreadableState: it is damaged, or forged."""
    try:
        _check_archive(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        _check_tree(found, path.stat().st_size, 0)
    except UnreadableState:
        raise
    except _ERRORS as error:
        raise UnreadableState(f"cannot be read ({type(error).__name__})") from error
    return found


def _check_archive(path: Path) -> None:
    """Check that the file is a zip without compression, whose pickle names only what tensors need."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UnreadableState("is compressed, which no checkpoint is")
        trees = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(trees) != 1 or trees[0].file_size > _LARGEST_TREE:
            raise UnreadableState("holds no tree of values")
        content = archive.read(trees[0])
    for operation, argument, _ in pickletools.genops(content):
        if "GLOBAL" in operation.name and argument not in _ALLOWED:
            raise UnreadableState("cannot be read without running code it carries")


def _check_tree(tree: Any, size: int, depth: int) -> None:
    """Check that no tensor shows more than its bytes, and none more than the file's `size`."""
    if depth > _DEEPEST:
        raise UnreadableState("nests too deeply")
    if isinstance(tree, dict):
        for value in tree.values():
            _check_tree(value, size, depth + 1)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            _check_tree(value, size, depth + 1)
    elif isinstance(tree, Tensor):
        held = tree.untyped_storage().nbytes()
        if held > size or tree.numel() * tree.element_size() > held:
            raise UnreadableState("has a tensor that is larger than its bytes")
