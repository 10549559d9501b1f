"""What a search has done, in a file of JSON lines: the truth from which everything else is rebuilt.

    {"format": 1, "seed": 0, "metric": "accuracy", "mode": "max", "space": {…}, "searcher": {…}, "schedule": {…}}
    {"event": "began", "trial": 0, "configuration": {"outer.lr": 0.003}, "parent": null, "start": 0}
    {"event": "result", "trial": 0, "budget": 100, "value": 0.61, "status": "running"}
    {"event": "ended", "trial": 0, "status": "failed", "reason": "out of memory"}

With several objectives a header has their names, and a result what it costs:

    {…, "schedule": {…}, "objectives": ["parameters"]}
    {"event": "result", "trial": 0, "budget": 100, "value": 0.61, "costs": {"parameters": 112709.0}, "status": …}

In a population the result of a trial that copies another begins the copy too, in the same line:

    {"event": "result", …, "status": "stopped", "copy": {"trial": 8, "parent": 2, "start": 100, "configuration": {…}}}

A line is on the disk before anybody acts on it, and holds all that it decides, so a crash leaves whole decisions. What
it tore is the last line: that is cut off, for nobody has acted on it. There are no times in it: a search that stopped
and went on writes what an undisturbed one writes, byte for byte.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metatrain.yaml_config import short
from tasks.io.atomic import fsync
from tune.history.trials import History, Mode, Trial

FORMAT = 1
Event = dict[str, Any]


class Journal:
    """Appends events, each durably. `events` are those that were there when it was opened."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Begin a journal, or go on with one. ValueError: it is another search's, or damaged."""
        self.path = path
        wanted: Event = json.loads(_line({"format": FORMAT, **header}))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        try:
            lines = self._read_whole_lines()
            if lines:
                _check_header(path, lines[0], wanted)
            else:
                self._write(wanted)
                fsync(path.parent)
        except BaseException:
            self._file.close()
            raise
        self.events: list[Event] = lines[1:]

    def append(self, event: Event) -> None:
        """The event is on the disk when this returns."""
        self._write(event)

    def close(self) -> None:
        """Nothing is left to write."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._file.write(_line(event))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read_whole_lines(self) -> list[Event]:
        """Every line; the last is cut off where it has no end, or is not JSON, as after a power failure."""
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        found, kept = [], 0
        for number, line in enumerate(lines, 1):
            parsed = _parse(line)
            if parsed is None and number < len(lines):
                remedy = "restore the file, or search in another folder"
                raise ValueError(f"{self.path}, line {number}: not an event: {remedy}")
            if parsed is not None:
                found.append(parsed)
                kept += len(line) + 1
        if rest or len(found) < len(lines):
            self._file.truncate(kept)
            os.fsync(self._file.fileno())
        return found


def read_journal(text: str, where: str) -> tuple[Event, list[Event]]:
    """The header and the events of a journal that is another's, a torn last line left out. ValueError: it is none."""
    lines = [_parse(line.encode()) for line in text.split("\n")[:-1]]
    kept = [line for line in lines if line is not None]
    if not kept or len(kept) < len(lines) or kept[0].get("format") != FORMAT:
        raise ValueError(f"{where}: is no journal of format {FORMAT}: restore the file, or leave that search out")
    return kept[0], kept[1:]


def replay(mode: Mode, events: Iterable[Event], where: str = "journal", objectives: tuple[str, ...] = ()) -> History:
    """The history that the events tell. ValueError: they do not fit together."""
    history = History(mode, objectives=objectives)
    for number, event in enumerate(events, 2):
        try:
            history = apply_event(history, event)
        except (KeyError, TypeError, ValueError) as error:
            wrong = f"{where}, line {number}: {short(event)} does not follow"
            raise ValueError(f"{wrong}: restore the file, or search in another folder") from error
    return history


def apply_event(history: History, event: Event) -> History:
    """The history with one more event."""
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
    raise ValueError(f"{event['event']!r} is no event: update metatrain")


def _replace_by_copy(history: History, number: int, copy: Event) -> History:
    """The place of a trial is taken by one that begins from another's checkpoint."""
    history.trial(copy["parent"])
    begun = Trial(copy["trial"], copy["configuration"], copy["parent"], copy["start"])
    return history.with_end(number, "stopped", f"copies trial {copy['parent']}").with_trial(begun)


def _check_header(path: Path, found: Event, wanted: Event) -> None:
    anew = "give the search another folder"
    if found.get("format") != FORMAT:
        wrong = f"is of format {short(found.get('format'))}, this is metatrain's {FORMAT}"
        raise ValueError(f"{path}: {wrong}: update metatrain, or {anew}")
    for key in [key for key in wanted | found if found.get(key) != wanted.get(key)]:
        wrong = f"is another search's: its {key} is {_show(found, key)}, not {_show(wanted, key)}"
        raise ValueError(f"{path}: {wrong}: set it so to go on, or {anew}")


def _show(header: Event, key: str) -> str:
    return short(header[key]) if key in header else "left out"


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
