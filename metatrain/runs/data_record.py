"""Keep what data a run was trained on (data.json), and compare it with the data that are there later."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from metatrain.runs.run import Run
from tasks.io.json_documents import check_json, read_json
from tasks.text import count_of, enumerate_few
from tasks.types import SPLITS, DataRecord, Split

NAME = "data.json"
_FORMAT = 1
_REMEDY = "restore that file, or remove it"


class _Plain(TypedDict):
    format: int
    fingerprint: str
    splits: dict[str, list[str]]
    contents: dict[str, str]
    examples: int
    notes: list[str]
    warnings: list[str]


class Overlap(NamedTuple):
    """How many test classes there are, and which of them were trained on: with the same images, or by name alone."""

    test: int
    same: Sequence[str]
    by_name: Sequence[str]
    known: bool = True
    """Whether the run keeps a record of the classes it was trained on."""

    @property
    def trained_on(self) -> int | None:
        """Return how many test classes were trained on, those by name alone included; None where that is unknown."""
        return len(self.same) + len(self.by_name) if self.known else None


def data_files(data: DataRecord | None) -> dict[str, str]:
    """Return the texts of the files that a new run keeps of its data, by name."""
    if data is None:
        return {}
    plain: dict[str, Any] = {
        "format": _FORMAT,
        "fingerprint": data.fingerprint,
        "counts": {split: len(data.classes[split]) for split in SPLITS},
        "examples": data.examples,
        "splits": {split: list(data.classes[split]) for split in SPLITS},
        "notes": list(data.notes),
        "warnings": list(data.warnings),
        "contents": dict(data.contents),
    }
    return {NAME: json.dumps(plain, indent=1, ensure_ascii=False) + "\n"}


def read_data(home: Run) -> DataRecord | None:
    """Return what data a run was trained on; None for a run that keeps no record. ValueError: the record is damaged."""
    path: Path = home.path / NAME
    if not path.is_file():
        return None
    plain: _Plain = check_json(read_json(path, _REMEDY), _Plain, str(path), _REMEDY)
    classes: dict[Split, list[str]] = {split: plain["splits"].get(split, []) for split in SPLITS}
    record = DataRecord(classes, plain["contents"], plain["examples"], plain["notes"], plain["warnings"])
    missing = [name for names in classes.values() for name in names if name not in record.contents]
    if plain["format"] != _FORMAT or missing or record.fingerprint != plain["fingerprint"]:
        raise ValueError(f"{path}: its fingerprint is not that of its classes: {_REMEDY}")
    return record


def require_unchanged(home: Run, kept: DataRecord, now: DataRecord) -> None:
    """Check that the data are those that the run began with. ValueError: what changed, and the remedy."""
    if now.fingerprint == kept.fingerprint:
        return
    before, after = ({name: split for split in SPLITS for name in record.classes[split]} for record in (kept, now))
    changes = {
        "added": [f"{name} ({after[name]})" for name in after if name not in before],
        "removed": [f"{name} ({before[name]})" for name in before if name not in after],
        "moved to another split": [name for name in after if before.get(name, after[name]) != after[name]],
        "with other images": [
            name for name in after if now.contents[name] != kept.contents.get(name, now.contents[name])
        ],
    }
    told = [
        f"{count_of(len(names), 'class', 'classes')} {change}: {enumerate_few(names, 3)}"
        for change, names in changes.items()
        if names
    ]
    raise ValueError(
        f"tasks: the data have changed since {home.where} began ({'; '.join(told) or 'their order'}): restore them, or "
        "start a new run"
    )


def find_overlap(trained: DataRecord | None, tested: DataRecord) -> Overlap:
    """Return which test classes were trained on: those with the images or the name of a class for training."""
    if trained is None:
        return Overlap(len(tested.classes["test"]), (), (), known=False)
    names = trained.classes["train"]
    images, named = {trained.contents[name] for name in names}, set(names)
    test = tested.classes["test"]
    same = [name for name in test if tested.contents[name] in images]
    return Overlap(len(test), same, [name for name in test if name in named and tested.contents[name] not in images])


def describe_overlap(found: Overlap) -> list[str]:
    """Return one line or two for people: "0 of 6 test classes were trained on"."""
    classes = count_of(found.test, "test class", "test classes")
    if not found.known:
        return [f"{classes}; whether they were trained on is unknown: the run keeps no record of its classes"]
    lines = []
    if found.same or not found.by_name:
        names = f": {enumerate_few(found.same)}" if found.same else ""
        warning = "WARNING: " if found.same else ""
        lines.append(
            f"{warning}{len(found.same)} of {classes} {'was' if found.test == 1 else 'were'} trained on{names}"
        )
    if found.by_name:
        names = enumerate_few(found.by_name)
        reason = "have the names of classes trained on, with other images"
        lines.append(f"WARNING: {len(found.by_name)} of {classes} {reason}: {names}")
    return lines


def describe_changed(trained: DataRecord, tested: DataRecord) -> list[str]:
    """Return a line that names the test classes with other images than the run began with, if there are any."""
    names = [name for name in tested.classes["test"] if trained.contents.get(name) != tested.contents[name]]
    if not names:
        return []
    has = "1 test class has" if len(names) == 1 else f"{len(names):,} test classes have"
    return [f"{has} other images than when the run began: {enumerate_few(names)}"]
