"""Load pickles of numpy arrays without running any code in them.

An unpickler calls whatever a pickle names, and numpy's own `__setstate__` trusts the given type and length, so a forged
pickle could corrupt memory. Hence only plain containers and the names by which arrays and numbers are pickled are
allowed, and those resolve to functions of this module, which check shape, type and length.
"""

import collections
import math
import pickle
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_REMEDY = "replace it by the original file"

_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OverflowError,
    MemoryError,
)
"""Errors that damaged or forged pickles raise."""


def load_arrays(path: Path) -> Any:
    """Load a pickle of arrays, numbers, strings and plain containers, of Python 2 or 3.

    ValueError: it is damaged, or names anything else, which is not run.
    """
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(path, file).load()
    except _ForbiddenName as error:
        raise ValueError(str(error)) from None
    except _PICKLE_ERRORS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is not a complete pickle of arrays ({reason}): {_REMEDY}") from error


class _ForbiddenName(Exception):
    """The pickle names something that arrays do not need."""


class _ArrayUnpickler(pickle.Unpickler):
    """Resolve only the names in _ALLOWED; decode the strings of Python 2 as Latin-1, which keeps their bytes."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        current = module.replace("numpy.core", "numpy._core").replace("__builtin__", "builtins")
        if (current, name) not in _ALLOWED:
            wanted = f"{module}.{name}".encode("unicode_escape").decode()
            raise _ForbiddenName(f"{self._path} asks for {wanted}, which no array needs; it was not run: {_REMEDY}")
        return _ALLOWED[current, name]


class _CheckedDtype:
    """Replace numpy.dtype: numbers and strings of one kind, such as "u1", and their byte order."""

    def __init__(self, code: str, align: bool, copy: bool) -> None:
        if not re.fullmatch(r"[biufSU][0-9]{1,6}", code):
            raise pickle.UnpicklingError(f"an array of '{code}'")
        self.type = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.type = self.type.newbyteorder(state[1])


class _CheckedArray(np.ndarray[Any, np.dtype[Any]]):
    """An array that checks its content, and is filled only once."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if self.shape != (0,) or not isinstance(dtype, _CheckedDtype):
            raise pickle.UnpicklingError("an array filled twice, or without a type")
        if len(content) != math.prod(shape) * dtype.type.itemsize or min(shape, default=0) < 0:
            raise pickle.UnpicklingError(f"an array of {shape} from {len(content)} bytes")
        filling: Any = (1, shape, dtype.type, bool(fortran), _to_bytes(content))
        super().__setstate__(filling)


def _make_empty(subtype: object, shape: object, code: object) -> _CheckedArray:
    """Replace numpy._core.multiarray._reconstruct: return an array that is about to be filled."""
    return np.zeros(0, np.uint8).view(_CheckedArray)


def _from_buffer(content: Any, dtype: _CheckedDtype, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    """Replace numpy._core.numeric._frombuffer, of pickle protocol 5."""
    flat = np.frombuffer(bytes(content), dtype.type)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _make_number(dtype: _CheckedDtype, content: bytes | str) -> Any:
    """Replace numpy._core.multiarray.scalar."""
    return np.frombuffer(_to_bytes(content), dtype.type)[0]


def _to_bytes(content: bytes | str, encoding: str = "latin1") -> bytes:
    """Replace _codecs.encode, by which Python 3 pickles bytes for Python 2; also convert Python 2's own strings."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return content.encode(encoding) if isinstance(content, str) else content


# The names of numpy 2 and Python 3; find_class translates those of numpy 1 and Python 2.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _CheckedDtype,
    ("numpy._core.multiarray", "_reconstruct"): _make_empty,
    ("numpy._core.multiarray", "scalar"): _make_number,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _to_bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    **{("builtins", kind.__name__): kind for kind in (list, dict, set, range)},
    ("builtins", "xrange"): range,
}
