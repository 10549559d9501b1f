"""Write and replay the journal of a study: JSON lines from which everything else is rebuilt.

    {"format": 1, "seed": 0, "metric": "accuracy", "mode": "max", "space": {…}, "searcher": {…}, "schedule": {…}}
    {"event": "began", "trial": 0, "configuration": {"outer.lr": 0.003}, "parent": null, "start": 0}
    {"event": "result", "trial": 0, "budget": 100, "value": 0.61, "status": "running"}
    {"event": "ended", "trial": 0, "status": "failed", "reason": "out of memory"}

With several objectives a header names them, and a result has its costs:

    {…, "schedule": {…}, "objectives": ["parameters"]}
    {"event": "result", "trial": 0, "budget": 100, "value": 0.61, "costs": {"parameters": 112709.0}, "status": …}

In a population the result of a trial that copies another begins the copy too, in the same line:

    {"event": "result", …, "status": "stopped", "copy": {"trial": 8, "parent": 2, "start": 100, "configuration": {…}}}

A line is on disk before anything acts on it and holds all that it decides, so a crash leaves whole decisions. Only the
last line can be torn; it is cut off, since nothing has acted on it. There are no times in the journal: a resumed study
writes what an uninterrupted one writes, byte for byte.
"""

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from metatrain.yaml_config import shorten
from tasks.io.atomic import fsync
from tasks.io.files import open_unlinked
from tasks.io.json_documents import check_json
from tasks.io.json_lines import parse_json_lines
from tune.history.trials import History, Mode, Status, Trial

FORMAT = 1
Event = dict[str, Any]


class _Event(TypedDict):
    """What every event has."""

    event: Literal["began", "result", "ended"]
    trial: int


class _Began(_Event):
    configuration: dict[str, Any]
    parent: int | None
    start: int


class _Copy(TypedDict):
    trial: int
    configuration: dict[str, Any]
    parent: int
    start: int


class _Result(_Event):
    budget: int
    value: float
    status: Status
    costs: NotRequired[dict[str, float]]
    copy: NotRequired[_Copy]


class _Ended(_Event):
    status: Status
    reason: str


_KINDS: dict[str, Any] = {"began": _Began, "result": _Result, "ended": _Ended}


class _JournalHeader(TypedDict):
    """The first line of a journal, as far as others read it."""

    format: int
    metric: str
    mode: Mode
    space: dict[str, Any]
    objectives: NotRequired[list[str]]


def check_header(header: Event, where: str, remedy: str) -> None:
    """Check the first line of a journal. ValueError: it is of another format, or says no metric, mode and space."""
    if header.get("format") != FORMAT:
        raise ValueError(f"{where}: is not a journal of format {FORMAT}: {remedy}")
    check_json(header, _JournalHeader, f"{where}, line 1", remedy)


class Journal:
    """Append events durably. `events` holds those that the file had when it was opened."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Create a journal or open an existing one. ValueError: it is another study's, or damaged."""
        self.path = path
        wanted: Event = json.loads(_encode_line({"format": FORMAT, **header}))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_unlinked(path, "ab+")
        try:
            lines = self._read_whole_lines()
            if lines:
                _check_header(path, lines[0], wanted)
            else:
                self.append(wanted)
                fsync(path.parent)
        except BaseException:
            self._file.close()
            raise
        self.events: list[Event] = lines[1:]

    def append(self, event: Event) -> None:
        """Write an event; it is on disk when this returns."""
        self._file.write(_encode_line(event))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; every event is on disk already."""
        self._file.close()

    def _read_whole_lines(self) -> list[Event]:
        """Read every line; cut off the last if it has no end or is not JSON, as after a power failure."""
        self._file.seek(0)
        remedy = "restore the file, or search in another folder"
        found = list(parse_json_lines(self._file, str(self.path), remedy))
        kept = sum(len(line) for line, _ in found)
        if kept < self._file.seek(0, os.SEEK_END):
            self._file.truncate(kept)
            os.fsync(self._file.fileno())
        return [event for _, event in found]


def read_journal(text: str, where: str) -> tuple[Event, list[Event]]:
    """Parse the header and the events of another study's journal, without a torn last line. ValueError: it is no
    journal.
    """
    remedy = "restore the file, or remove that search"
    kept = [event for _, event in parse_json_lines(io.BytesIO(text.encode()), where, remedy)]
    if not kept:
        raise ValueError(f"{where}: is not a journal of format {FORMAT}: {remedy}")
    check_header(kept[0], where, remedy)
    return kept[0], kept[1:]


def replay(mode: Mode, events: Iterable[Event], where: str = "journal", objectives: tuple[str, ...] = ()) -> History:
    """Rebuild the history from events. ValueError: an event does not follow from those before it."""
    history = History(mode, objectives=objectives)
    remedy = "restore the file, or search in another folder"
    for number, event in enumerate(events, 2):
        line = f"{where}, line {number}"
        check_json(event, _KINDS.get(str(event.get("event")), _Event), line, remedy)
        try:
            history = apply_event(history, event)
        except ValueError as error:
            raise ValueError(f"{line}: {shorten(event)} does not follow: {remedy}") from error
    return history


def apply_event(history: History, event: Event) -> History:
    """Return the history with one more event."""
    number = event["trial"]
    match event["event"]:
        case "began":
            return history.with_trial(Trial(number, event["configuration"], event["parent"], event["start"]))
        case "result":
            seen = history.with_result(number, event["budget"], event["value"], event.get("costs", {}))
            if "copy" in event:
                return _replace_by_copy(seen, number, event["copy"])
            return seen if event["status"] == "running" else seen.with_end(number, event["status"])
        case "ended":
            return history.with_end(number, event["status"], event["reason"])
    raise ValueError(f"{event['event']!r} is not an event: update metatrain")


def _replace_by_copy(history: History, number: int, copy: Event) -> History:
    """End a trial in favour of one that begins from another's checkpoint."""
    history.trial(copy["parent"])
    begun = Trial(copy["trial"], copy["configuration"], copy["parent"], copy["start"])
    return history.with_end(number, "stopped", f"copies trial {copy['parent']}").with_trial(begun)


def _check_header(path: Path, found: Event, wanted: Event) -> None:
    anew = "search in another folder"
    if found.get("format") != FORMAT:
        wrong = f"is of format {shorten(found.get('format'))}, this is metatrain's {FORMAT}"
        raise ValueError(f"{path}: {wrong}: update metatrain, or {anew}")
    for key in [key for key in wanted | found if found.get(key) != wanted.get(key)]:
        wrong = f"is another search's: its {key} is {_show_value(found, key)}, not {_show_value(wanted, key)}"
        raise ValueError(f"{path}: {wrong}: set it so to go on, or {anew}")


def _show_value(header: Event, key: str) -> str:
    return shorten(header[key]) if key in header else "left out"


def _encode_line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
