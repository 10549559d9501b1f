"""Pickles of arrays, read without running what they ask for.

An unpickler calls whatever a pickle names, and numpy's own `__setstate__` believes what it is told of an array's type,
which a forged pickle can use to break memory. So nothing is admitted but plain containers and the five names by which
arrays and numbers are pickled, and those mean functions of this module, which check shape, type and length.
"""

import collections
import math
import pickle
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_REMEDY = "put the original file in its place"

# What damaged or forged pickles raise, besides UnpicklingError.
_FAILURES = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OverflowError,
    MemoryError,
)


def load_arrays(path: Path) -> Any:
    """What a pickle of arrays, numbers, strings and plain containers holds, of Python 2 or 3.

    Raises ValueError for a pickle that is damaged, or that asks for anything else, which is not run.
    """
    try:
        with path.open("rb") as file:
            return _ArraysOnly(path, file).load()
    except _Refused as error:
        raise ValueError(str(error)) from None
    except _FAILURES as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is not a whole pickle of arrays ({reason}): {_REMEDY}") from error


class _Refused(Exception):
    """What a pickle asks for is nothing that arrays need."""


class _ArraysOnly(pickle.Unpickler):
    """Finds only what is in _ADMITTED; the strings of Python 2 are taken for bytes, as Latin-1 can hold."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        home = module.replace("numpy.core", "numpy._core").replace("__builtin__", "builtins")
        if (home, name) not in _ADMITTED:
            wanted = f"{module}.{name}".encode("unicode_escape").decode()
            raise _Refused(f"{self._path} asks for {wanted}, which no array needs; it was not run: {_REMEDY}")
        return _ADMITTED[home, name]


class _Kind:
    """Stands for numpy.dtype: numbers and strings of one kind, such as "u1", and their byte order."""

    def __init__(self, code: str, align: bool, copy: bool) -> None:
        if not re.fullmatch(r"[biufSU][0-9]{1,6}", code):
            raise pickle.UnpicklingError(f"an array of '{code}'")
        self.type = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.type = self.type.newbyteorder(state[1])


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array that checks what it is filled with, and is filled once."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        if self.shape != (0,) or not isinstance(kind, _Kind):
            raise pickle.UnpicklingError("an array filled twice, or of no type")
        if len(content) != math.prod(shape) * kind.type.itemsize or min(shape, default=0) < 0:
            raise pickle.UnpicklingError(f"an array of {shape} from {len(content)} bytes")
        filling: Any = (1, shape, kind.type, bool(fortran), _bytes(content))
        super().__setstate__(filling)


def _empty(subtype: object, shape: object, code: object) -> _Array:
    """Stands for numpy._core.multiarray._reconstruct: an array that is about to be filled."""
    return np.zeros(0, np.uint8).view(_Array)


def _from_buffer(content: Any, kind: _Kind, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    """Stands for numpy._core.numeric._frombuffer, of protocol 5."""
    flat = np.frombuffer(bytes(content), kind.type)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _number(kind: _Kind, content: bytes | str) -> Any:
    """Stands for numpy._core.multiarray.scalar."""
    return np.frombuffer(_bytes(content), kind.type)[0]


def _bytes(content: bytes | str, encoding: str = "latin1") -> bytes:
    """Stands for _codecs.encode, by which Python 3 writes bytes for Python 2; and what Python 2 wrote for them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return content.encode(encoding) if isinstance(content, str) else content


# By the names of numpy 2 and Python 3; find_class knows those of numpy 1 and Python 2.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Kind,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "scalar"): _number,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("builtins", "list"): list,
    ("builtins", "dict"): dict,
    ("builtins", "set"): set,
    ("builtins", "range"): range,
    ("builtins", "xrange"): range,
}
