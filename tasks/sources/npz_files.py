"""Read arrays from numpy's .npz, in which nothing is run."""

import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.sources.table_files import require_size

_NPZ_ERRORS = (
    *(OSError, ValueError, EOFError, LookupError, MemoryError, NotImplementedError, RuntimeError),
    *(SyntaxError, TypeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""Errors that damaged or forged files raise."""


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Return those of the arrays called `names` that a file has; all of them for None.

    ValueError: the file is damaged, too large, or has objects, which would have to be unpickled.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [(entry.filename.removesuffix(".npy"), entry.file_size) for entry in archive.infolist()]
            require_size(path, sum(size for name, size in entries if names is None or name in names))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if names is None or name in names}
    except _NPZ_ERRORS as error:
        if str(error).startswith("root:"):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"root: {path} is no .npz of arrays without objects ({reason}): write it again") from error
