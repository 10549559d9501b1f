"""Read a table from a CSV or Parquet file."""

from pathlib import Path

import pyarrow as pa


def read_table(path: Path) -> pa.Table:
    """Return the table of a file; empty cells of a CSV are missing.

    ValueError: it is no table, or two of its columns share a name.
    """
    from pyarrow import csv, parquet

    empty_is_missing = csv.ConvertOptions(strings_can_be_null=True)
    try:
        if path.suffix.lower() == ".parquet":
            table = parquet.read_table(path)
        else:
            table = csv.read_csv(path, convert_options=empty_is_missing)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"root: {path} is no table ({reason}): set a CSV or Parquet file") from error
    names = table.column_names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"root: {path.name} has two columns called '{twice}': rename one")
    return table
