"""Describe a run beside its results: dates, speed, environment, and the commands to continue with."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

from metatrain.report.collect import RunRecord
from metatrain.report.text import count, status
from tasks.io.remote_fs import is_uri


def moment(created: str) -> str:
    """Format a date: 2026-11-21 05:49:56 UTC."""
    return created.replace("T", " ").replace("Z", " UTC")


def headline(record: RunRecord) -> str:
    """Return how far the run has come, when it was created and its id, in one line."""
    return f"{status(record)} · created {moment(record.created)} · run {record.run_id}"


def timing(record: RunRecord) -> dict[str, str]:
    """Return how long the run took, and how fast it was."""
    known = {"created": moment(record.created), "steps": f"{count(record.steps)} of {count(record.total)}"}
    series = record.series.get("time/tasks_per_second")
    pace = [value for value in series.values if math.isfinite(value) and value > 0] if series else []
    if pace:
        each = record.settings.get("outer.tasks_per_step", 0)
        known["tasks per second, median"] = f"{sorted(pace)[len(pace) // 2]:.4g}"
        # Of the steps that were recorded, which tracking.every thins.
        seconds_a_step = sum(each / value for value in pace) / len(pace)
        known["seconds in training steps"] = f"{seconds_a_step * record.steps:.4g}"
    if record.clock is not None:
        known["seconds from the first record to the last"] = f"{record.clock[1] - record.clock[0]:.4g}"
    return known


def commands(record: RunRecord) -> list[tuple[str, str]]:
    """Return the commands to continue with, exactly, in the folder that this page was made in."""
    run = shlex.quote(record.where)
    load = f"import metatrain\nlearner = metatrain.load({record.where!r})"
    anew = f"metatrain train {shlex.quote(f'{record.where}/config.yaml')}"
    found = [] if record.finished else [("Resume the training", f"metatrain train --resume {run}")]
    if record.kept:
        found += [
            ("Test it, on other tasks too", f"metatrain evaluate {run} tasks.test.shots=5"),
            ("Use it in Python", load),
        ]
    if not is_uri(record.where):
        found.append(("Train a new run with the same settings", anew))
    return [*found, ("Make this page again", f"metatrain report {run}")]


def environment(seen: Mapping[str, Any]) -> dict[str, str]:
    """Return what a run was made with, of what its environment.json holds."""
    known = {"Python": str(seen.get("python", "")), "platform": str(seen.get("platform", ""))}
    cpu = seen.get("cpu") or {}
    known["CPU"] = f"{cpu.get('model', '')} × {cpu.get('count', '')}"
    known |= {str(name): str(version) for name, version in (seen.get("versions") or {}).items()}
    git = seen.get("git")
    dirty = " with changes that were not committed" if git and git.get("dirty") else ""
    known["git revision"] = f"{git.get('revision')}{dirty}" if git else "not in a git repository"
    known["command"] = shlex.join(str(word) for word in seen.get("command") or [])
    return known
