"""Read files of weights without running any code in them: state dicts of torch.save, and safetensors.

What is reserved is bounded by the size of the file. safetensors: 8 bytes with the length of a JSON header, little
endian; the header, {name: {"dtype", "shape", "data_offsets": [begin, end]}}; then the tensors' bytes, without gaps.
"""

import json
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from metatrain.runs.state_file import UnreadableState, read_state
from metatrain.validation import require
from tasks.io.files import open_plain

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_LARGEST_HEADER = 16 * 2**20
_MOST_DIMENSIONS = 16
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the state dict among other things."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file by name, on the CPU. ValueError: it cannot be read, with the remedy."""
    require(path.suffix.lower() in SUFFIXES, f"{path.name}: is no file of weights: use {', '.join(SUFFIXES)}, or a run")
    try:
        if path.suffix.lower() == ".safetensors":
            with open_plain(path) as file:
                return _read_safetensors(file, path.stat().st_size)
        return _read_state_dict(path)
    except OSError as error:
        raise ValueError(
            f"cannot be read ({error.strerror or type(error).__name__}): use the path of a file"
        ) from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    with open_plain(path) as file:
        whole = zipfile.is_zipfile(file)
    resave = f"save it anew: torch.save(torch.load('{path.name}', weights_only=True), '{path.name}')"
    require(whole, f"is no file of torch.save, or one of a torch before 1.6: {resave}")
    try:
        found: Any = read_state(path)
    except UnreadableState as error:
        raise ValueError(f"{error}: use a state dict: torch.save(network.state_dict(), FILE)") from error
    for key in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    plain = isinstance(found, dict) and bool(found)
    plain = plain and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items())
    require(plain, "holds no state dict: make one by torch.save(network.state_dict(), FILE)")
    dense = all(value.layout == torch.strided and not value.is_quantized for value in found.values())
    require(dense, "holds sparse or quantised tensors: save dense ones")
    return dict(found)


def _read_safetensors(file: IO[bytes], size: int) -> dict[str, Tensor]:
    damaged = "is no whole safetensors file: save it anew"
    length = int.from_bytes(file.read(8), "little")
    require(size >= 8 and length <= min(size - 8, _LARGEST_HEADER), damaged)
    try:
        header = json.loads(file.read(length), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header cannot be read ({type(error).__name__}): save it anew") from error
    require(isinstance(header, dict), damaged)
    header.pop("__metadata__", None)
    entries = [(_checked_entry(entry, damaged), name) for name, entry in header.items()]
    found, at = {}, 0
    for (begin, end, dtype, shape), name in sorted(entries, key=lambda entry: entry[0][:2]):
        require(begin == at and end <= size - 8 - length, damaged)  # the format leaves no gaps and no overlaps
        content = bytearray(file.read(end - begin))
        require(len(content) == end - begin, damaged)
        values = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        found[name] = values.reshape(shape)
        at = end
    require(at == size - 8 - length and bool(found), damaged)
    return found


def _checked_entry(entry: Any, damaged: str) -> tuple[int, int, torch.dtype, tuple[int, ...]]:
    """Return (begin, end, dtype, shape) of a tensor in the header. ValueError: its bytes are not those of its shape."""
    require(isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}, damaged)
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    require(lists and len(shape) <= _MOST_DIMENSIONS, damaged)
    require(all(type(number) is int and 0 <= number < 2**63 for number in (*shape, *offsets)), damaged)
    known = isinstance(kind, str) and kind in _DTYPES
    require(known, f"holds a tensor of type {str(kind)[:20]}: save it as float32")
    begin, end = offsets
    require(end - begin == math.prod(shape) * _DTYPES[kind].itemsize, damaged)
    return begin, end, _DTYPES[kind], tuple(shape)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    require(len(found) == len(pairs), "a name stands twice")
    return found
