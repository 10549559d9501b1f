"""Tell what a run, a search or the runs of a folder are doing, by their own records."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from metatrain import runs
from metatrain.report.collect import read_settings
from metatrain.runs.locations import is_search, open_run
from metatrain.tracking.jsonl import PROGRESS
from metatrain.tracking.status_line import RunProgress, add_stage, read_metrics_file
from metatrain.validation import require

_HEADER = "run.json"


class _Found(NamedTuple):
    """A run of a folder: whether it runs, when its run.json was written, where it is. They sort by this."""

    running: bool
    made: float
    path: Path


def holds_runs(folder: Path) -> bool:
    """Return whether a folder is no run itself and has one in it."""
    if not folder.is_dir() or (folder / _HEADER).exists():
        return False
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and (Path(entry.path) / _HEADER).exists() for entry in entries)


def folder_status(folder: Path, most: int) -> tuple[list[dict[str, Any]], int]:
    """Return the statuses of the runs in a folder that run, then of the newest others, `most` in all if fewer run; and
    how many are left out.

    Only what is shown is read: of 10,000 runs the others cost a look at two files each.
    """
    found = sorted(_find_runs(folder), reverse=True)
    shown = max(most, sum(one.running for one in found))
    return [_readable_status(one.path) for one in found[:shown]], max(0, len(found) - shown)


def _find_runs(folder: Path) -> list[_Found]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            try:
                made = (path / _HEADER).stat().st_mtime
            except OSError:  # no run, or one that has just been removed
                continue
            found.append(_Found(runs.find_owner(runs.Run(path, path.name, "")) is not None, made, path))
    return found


def _readable_status(path: Path) -> dict[str, Any]:
    """Return the status of a run of a folder, also where its records are damaged: the others are to be seen."""
    name = str(path) if str(path).isprintable() else ascii(str(path))
    try:
        return run_status(str(path)) | {"name": name}
    except ValueError as error:
        return status_as_dict(name, "UNREADABLE", None, ascii(str(error))[1:-1])


def run_status(place: str) -> dict[str, Any]:
    """Return the status of the run or search in a folder, by its own records."""
    home = open_run(place)
    owner = runs.find_owner(home)
    running = f"RUNNING ({owner})" if owner else "NOT RUNNING"
    if is_search(home):
        return {"name": home.where, "status": running, "line": _format_search(home)}
    total = read_settings(home).get("outer.steps")
    if not isinstance(total, int):
        raise ValueError(f"{home.config}: outer.steps: is no number of steps: restore that file")
    progress = read_metrics_file(home.metrics, total)
    if progress is not None and owner:
        progress = add_stage(progress, home.path / PROGRESS)
    finished = progress is not None and progress.tested
    return status_as_dict(home.where, "FINISHED" if finished else running, progress)


def _format_search(home: runs.Run) -> str:
    from tune.monitor import SearchStatus
    from tune.report.collect import collect

    story = collect(home)
    spent = 0.0 if math.isnan(story.spent) else story.spent
    trials, minutes = (story.settings.get(f"search.{name}") for name in ("trials", "minutes"))
    for name, value in {"trials": trials, "minutes": minutes}.items():
        known = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        require(known, f"{home.config}: search.{name}: is no number: restore that file")
    return SearchStatus(story.history, story.metric, trials, minutes, spent).text()


def status_as_dict(
    name: str, status: str, progress: RunProgress | None, otherwise: str = "no step yet"
) -> dict[str, Any]:
    """Return a status as plain values, for --json."""
    if progress is None:
        return {"name": name, "status": status, "line": " ".join(otherwise.split())}
    return {"name": name, "status": status, "line": progress.format(), **progress.as_dict()}
