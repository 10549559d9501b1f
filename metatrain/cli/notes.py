"""Print what a source of tasks left out, and how many test classes were trained on."""

import sys

from metatrain.runs.data_record import Overlap, describe_changed, describe_overlap
from tasks.types import SPLITS, DataRecord


def show_notes(data: DataRecord | None) -> None:
    """Print what was left out of the data and why, and what may make results wrong, to standard error."""
    if data is not None:
        for line in (*data.notes, *(f"WARNING: {warning}" for warning in data.warnings)):
            print(line, file=sys.stderr)


def describe_test_classes(kept: DataRecord | None, data: DataRecord | None, overlap: Overlap | None) -> list[str]:
    """Return lines that say how many test classes were trained on and, of other data, how many are not tested.

    kept: the run's record of its own data. data: what is tested.
    """
    if data is None or overlap is None:
        return []
    if kept is not None and list(kept.classes["test"]) == list(data.classes["test"]):
        return [*describe_overlap(overlap), *describe_changed(kept, data)]
    others = sum(len(data.classes[split]) for split in SPLITS if split != "test")
    beside = f"{others:,} more classes of these tasks are for training and validation" if others else ""
    return [*describe_overlap(overlap), *([beside] if beside else [])]
