"""Read a table from a CSV or Parquet file."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

MOST_BYTES = 2**34
"""Of a file's values in memory."""


def read_table(path: Path, texts: Sequence[str] = ()) -> pa.Table:
    """Return the table of a file, without the row numbers that pandas keeps in it.

    texts: columns that a CSV has as text whatever stands in them ("01", "NA"); its empty cells are missing. ValueError:
    it is no table, it is too large, or two of its columns share a name.
    """
    from pyarrow import parquet

    try:
        if path.suffix.lower() == ".parquet":
            groups = parquet.read_metadata(path)
            require_size(path, sum(groups.row_group(at).total_byte_size for at in range(groups.num_row_groups)))
            table = parquet.read_table(path)
        else:
            require_size(path, path.stat().st_size)
            table = _read_csv(path, texts)
        names = table.column_names
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"root: {path} is no table ({reason}): set a CSV (UTF-8) or Parquet file") from error
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"root: {path.name} has two columns called '{twice}': rename one")
    return table.drop_columns([name for name in _pandas_index(table) if name in names])


def require_size(path: Path, size: int) -> None:
    """Check that a file's values fit into memory. ValueError: they may not."""
    if size > MOST_BYTES:
        raise ValueError(f"root: {path.name} holds {size / 2**30:.0f} GiB: divide it, or draw some of its rows")


def _read_csv(path: Path, texts: Sequence[str]) -> pa.Table:
    from pyarrow import csv

    table = csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
    as_text = [name for name in texts if name in table.column_names]
    if as_text and len(set(table.column_names)) == len(table.column_names):
        options = csv.ConvertOptions(
            column_types=dict.fromkeys(as_text, pa.string()),
            include_columns=as_text,
            strings_can_be_null=True,
            null_values=[""],
        )
        read = csv.read_csv(path, convert_options=options)
        for name in as_text:
            table = table.set_column(table.column_names.index(name), name, read[name])
    return table


def _pandas_index(table: pa.Table) -> list[str]:
    """Return the columns in which pandas has kept a table's row numbers or names."""
    kept = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    return [name for name in kept.get("index_columns", ()) if isinstance(name, str)]
