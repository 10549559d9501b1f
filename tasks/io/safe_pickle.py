"""Load pickles of numpy arrays without running any code in them.

An unpickler calls whatever a pickle names, and numpy's own `__setstate__` trusts the given type and length, so a forged
pickle could corrupt memory. Hence only plain containers and the names by which arrays and numbers are pickled are
allowed, and those resolve to functions of this module, which check shape, type and length. A few bytes can also ask
for all of the memory, by `set(range(10**12))` or by one long text that is converted a thousand times; hence what these
functions make is bounded by the size of the file.
"""

import collections
import math
import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Sized
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

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
    DeprecationWarning,  # raised for an invalid escape, see `load_arrays`
)
"""Errors that damaged or forged pickles raise."""


def load_arrays(path: Path) -> Any:
    """Load a pickle of arrays, numbers, strings and plain containers, of Python 2 or 3.

    ValueError: it is damaged, or names anything else, which is not run.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # No whole pickle has one: a flipped bit would be reported beside the error that follows, or by itself.
            warnings.filterwarnings("error", "invalid (octal )?escape sequence", DeprecationWarning)
            _check_memo(_Bounded(file))
            return _ArrayUnpickler(path, _Bounded(file)).load()
    except _ForbiddenName as error:
        raise ValueError(str(error)) from None
    except _PICKLE_ERRORS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is not a complete pickle of arrays ({reason}): {_REMEDY}") from error


def to_text(value: Any) -> str:
    """Return a name in a pickle as text: Python 2 wrote bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Bounded:
    """Read a file from its beginning, and never ask for more bytes than it has: Python reserves them at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        file.seek(0)

    def read(self, count: int = -1) -> bytes:
        if count > self.size:
            raise pickle.UnpicklingError(f"it has {self.size} bytes and announces {count}")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline()

    def tell(self) -> int:
        return self._file.tell()


def _check_memo(file: _Bounded) -> None:
    """Check that objects are numbered one by one. Python reserves memory for all numbers up to the largest."""
    for count, (operation, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], file))):
        if "PUT" in operation.name and argument is not None and argument > count:
            raise pickle.UnpicklingError(f"its object {count} has the number {argument}")


class _Budget:
    """Count the bytes that a pickle has made beyond those that it holds."""

    def __init__(self, size: int) -> None:
        self._left = 8 * size + 2**24

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise pickle.UnpicklingError("it makes far more than it holds")


class _ForbiddenName(Exception):
    """The pickle names something that arrays do not need."""


class _ArrayUnpickler(pickle.Unpickler):
    """Resolve only the names in _ALLOWED; decode the strings of Python 2 as Latin-1, which keeps their bytes."""

    def __init__(self, path: Path, file: _Bounded) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path
        self._budget = _Budget(file.size)

    def find_class(self, module: str, name: str) -> Any:
        current = module.replace("numpy.core", "numpy._core").replace("__builtin__", "builtins")
        if (current, name) not in _ALLOWED:
            wanted = f"{module}.{name}".encode("unicode_escape").decode()
            raise _ForbiddenName(f"{self._path} asks for {wanted}, which no array needs; it was not run: {_REMEDY}")
        found = _ALLOWED[current, name]
        return partial(found, self._budget) if found in _COUNTED else found


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

    budget: _Budget

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if self.shape != (0,) or not isinstance(dtype, _CheckedDtype):
            raise pickle.UnpicklingError("an array filled twice, or without a type")
        if len(content) != math.prod(shape) * dtype.type.itemsize or min(shape, default=0) < 0:
            raise pickle.UnpicklingError(f"an array of {shape} from {len(content)} bytes")
        self.budget.spend(len(content))
        filling: Any = (1, shape, dtype.type, bool(fortran), _to_bytes(content))
        super().__setstate__(filling)


def _make_empty(budget: _Budget, subtype: object, shape: object, code: object) -> _CheckedArray:
    """Replace numpy._core.multiarray._reconstruct: return an array that is about to be filled."""
    empty = np.zeros(0, np.uint8).view(_CheckedArray)
    empty.budget = budget
    return empty


def _make_container(kind: Callable[..., Any], budget: _Budget, *arguments: Any) -> Any:
    """Make a container from others, whose content is counted."""
    for argument in arguments:
        if isinstance(argument, Sized):
            budget.spend(64 * len(argument))
    return kind(*arguments)


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


def _encode(budget: _Budget, content: bytes | str, encoding: str = "latin1") -> bytes:
    budget.spend(len(content))
    return _to_bytes(content, encoding)


_CONTAINERS = {
    ("collections", "OrderedDict"): partial(_make_container, collections.OrderedDict),
    ("collections", "defaultdict"): partial(_make_container, collections.defaultdict),
    **{("builtins", kind.__name__): partial(_make_container, kind) for kind in (list, dict, set)},
}
_COUNTED: list[Any] = [_make_empty, _encode, *_CONTAINERS.values()]
"""Functions that take the budget first."""

# The names of numpy 2 and Python 3; find_class translates those of numpy 1 and Python 2.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _CheckedDtype,
    ("numpy._core.multiarray", "_reconstruct"): _make_empty,
    ("numpy._core.multiarray", "scalar"): _make_number,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    **_CONTAINERS,
    ("builtins", "range"): range,
    ("builtins", "xrange"): range,
}
