"""Describe the progress of a run: as a line for people, and as a JSON line that `metatrain status` reads from a log.

The line for people, in one line:
120/500  0:12, 0:38 left · train loss 0.310, 89.20 % · validation 95.10 ± 0.40 % · best 95.30 ± 0.41 % at step 100
· 45 tasks/s · 2 workers
"""

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, NotRequired, TypedDict

from metatrain.metrics import METRICS, PRIMARY
from metatrain.tracking.jsonl import read_lines
from tasks.io.json_documents import check_json, parse_json, read_json

JSON_PREFIX = "metatrain-status "
"""Begins the lines of a job's log that hold a status as JSON."""
_RECENT = 50
"""Steps over which the pace is the median."""
_PAUSE, _PAUSE_S = 20.0, 60.0
"""A step that took so many times the usual, and so many seconds, had a pause before it, which is not counted."""


class _PlainStage(TypedDict):
    stage: str
    done: int
    total: int
    seconds_left: float | None


class Stage(NamedTuple):
    """Progress of a validation or test: "testing trained", with `done` of `total` tasks."""

    name: str
    done: int
    total: int

    def format(self) -> str:
        """Return the stage for people."""
        return f"{self.name} {self.done}/{self.total}"


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run: `seconds` spent, `seconds_left` (None before there is a pace), the newest metrics.

    "best/…" among the metrics are those of the best validation. tested: the run is finished. stage: the validation or
    test that is going on, which `seconds_left` is then about.
    """

    step: int
    steps: int
    seconds: float
    seconds_left: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tested: bool = False
    stage: Stage | None = None

    def format(self) -> str:
        """Return the line for people."""
        return f"{self.step}/{self.steps}  {self.format_details()}" if self.steps else self.format_details()

    def format_details(self) -> str:
        """Return the line for people without the step."""
        left = "?" if self.seconds_left is None else format_duration(self.seconds_left)
        stage = [] if self.stage is None else [self.stage.format()]
        return " · ".join([f"{format_duration(self.seconds)}, {left} left", *stage, *format_metrics(self.metrics)])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, metrics that are not finite as None."""
        left = self.seconds_left
        times = {"seconds": round(self.seconds, 1), "seconds_left": left if left is None else round(left, 1)}
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        stage = {} if self.stage is None else {"stage": self.stage._asdict()}
        return {"step": self.step, "steps": self.steps, **times, **stage, **metrics}

    def as_json_line(self) -> str:
        """Return the JSON line that `read_last_status` reads."""
        return JSON_PREFIX + json.dumps(self.as_dict())


def read_last_status(lines: Iterable[str]) -> RunProgress | None:
    """Return the last status among the lines of a log; None if there is none."""
    plain = next((found for line in reversed(list(lines)) if (found := _parse_status(line)) is not None), None)
    if plain is None:
        return None
    step, steps, seconds, left = (plain.pop(name) for name in ("step", "steps", "seconds", "seconds_left"))
    stage = plain.pop("stage", None)
    metrics = {name: value for name, value in plain.items() if value is not None}
    return RunProgress(
        step,
        steps,
        seconds,
        left,
        metrics,
        stage=None if stage is None else Stage(stage["name"], stage["done"], stage["total"]),
    )


class _LoggedStage(TypedDict):
    name: str
    done: int
    total: int


class _Status(TypedDict):
    """What every status as JSON has, beside metrics."""

    step: int
    steps: int
    seconds: float
    seconds_left: float | None
    stage: NotRequired[_LoggedStage]


def _parse_status(line: str) -> dict[str, Any] | None:
    """Return the status in a line of a log; None for another line, or one that was cut short or forged."""
    if not line.startswith(JSON_PREFIX):
        return None
    try:
        plain = parse_json(line.removeprefix(JSON_PREFIX), "status", "update metatrain there")
        whole: dict[str, Any] = check_json(plain, _Status, "status", "update metatrain there")
        metrics = {name: value for name, value in whole.items() if name != "stage"}
        check_json(metrics, dict[str, float | None], "status", "update metatrain there")
    except ValueError:
        return None
    finite = all(value is None or math.isfinite(value) for value in metrics.values())
    return whole if finite and whole.get("stage", {"name": ""})["name"].isprintable() else None


def drop_status_lines(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the text of `pieces`, line by line, without the JSON lines, which are for programs."""
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        yield from (f"{line}\n" for line in lines if not line.startswith(JSON_PREFIX))
    if rest and not rest.startswith(JSON_PREFIX):
        yield rest


class _Pace:
    """Seconds of training by the times of its records, of which the long ones are kept: they may have been pauses."""

    def __init__(self) -> None:
        self.last: tuple[int, float] | None = None
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._spent = 0.0
        self._long: list[tuple[float, int]] = []

    def add(self, step: int, moment: float) -> None:
        """Count the steps since the record before, if there are any."""
        steps = 0 if self.last is None else step - self.last[0]
        if self.last is not None and steps > 0:
            each = (moment - self.last[1]) / steps
            self._recent.append(each)
            if each > _PAUSE_S:
                self._long.append((each, steps))
            else:
                self._spent += each * steps
        self.last = step, moment

    def median(self) -> float:
        """Return the seconds of a step lately; 0 before there are two records."""
        return median(self._recent) if self._recent else 0.0

    def spent(self) -> float:
        """Return the seconds of all steps, without pauses."""
        longest = _PAUSE * self.median()
        return self._spent + sum(each * steps for each, steps in self._long if each <= longest)


def read_metrics_file(path: Path, steps: int) -> RunProgress | None:
    """Return the progress that a run's metrics.jsonl records, without pauses; None before the first step.

    The file is read line by line: memory does not grow with its length.
    """
    if not path.exists():
        return None
    pace, metrics, tested = _Pace(), dict[str, float](), False
    for record in read_lines(path):
        if "event" in record:
            continue
        metrics = merge_metrics(metrics, record["step"], record)
        tested = tested or any(name.startswith("test/") for name in record)
        if "time" in record and any(name.startswith("train/") for name in record):
            pace.add(record["step"], record["time"])
    if pace.last is None:
        return None
    step, each = pace.last[0], pace.median()
    left = each * (steps - step) if each > 0 else None
    return RunProgress(step, steps, pace.spent(), left, metrics, tested)


def add_stage(progress: RunProgress, path: Path) -> RunProgress:
    """Return `progress` with the validation or test that a run's progress.json tells of, if there is one to read."""
    try:
        plain = check_json(read_json(path, "remove that file"), _PlainStage, str(path), "remove that file")
    except (OSError, ValueError):
        return progress
    if not plain["stage"].isprintable():
        return progress
    left = plain["seconds_left"]
    left = left if left is not None and math.isfinite(left) else None
    return replace(progress, stage=Stage(plain["stage"], plain["done"], plain["total"]), seconds_left=left)


def merge_metrics(known: Mapping[str, float], step: int, metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Return `known` updated by the metrics of `step`, with "best/…" replaced if their validation is better."""
    merged = dict(known) | {
        name: value
        for name, value in metrics.items()
        if name.startswith(("train/", "validation/", "time/", "cluster/")) and isinstance(value, (int, float))
    }
    score = _primary(metrics, "validation")
    if score is not None:
        new, best, sign = merged.get(f"validation/{score}"), known.get(f"best/{score}"), METRICS[score].sign
        if new is not None and (best is None or sign * new > sign * best):
            names = [name for name in (score, "ci95") if f"validation/{name}" in merged]
            merged |= {f"best/{name}": merged[f"validation/{name}"] for name in names} | {"best/step": step}
    return merged


def format_metrics(metrics: Mapping[str, float]) -> list[str]:
    """Return the parts of the line for people that `metrics` hold: training, validation, best, tasks/s, workers."""
    parts = []
    train = [f"loss {metrics['train/loss']:.3f}"] if "train/loss" in metrics else []
    if train := [*train, *_format_score(metrics, "train")]:
        parts.append("train " + ", ".join(train))
    if validation := _format_score(metrics, "validation"):
        parts.append("validation " + validation[0])
    if best := _format_score(metrics, "best"):
        parts.append(f"best {best[0]} at step {metrics['best/step']:.0f}")
    if "time/tasks_per_second" in metrics:
        parts.append(f"{metrics['time/tasks_per_second']:.4g} tasks/s")
    if "cluster/workers" in metrics:
        workers = round(metrics["cluster/workers"])
        parts.append(f"{workers} worker{'s' * (workers != 1)}")
    return parts


def format_time_left(done: float, total: float, seconds: float) -> str:
    """Return how long `total - done` will take at the pace of the first `done`; "?" before there is a pace."""
    return format_duration(seconds * (total - done) / done) if done > 0 else "?"


def format_duration(seconds: float) -> str:
    """Return 0:07, 12:30 or 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _format_score(metrics: Mapping[str, float], split: str) -> list[str]:
    name, ci95 = _primary(metrics, split), metrics.get(f"{split}/ci95")
    if name is None:
        return []
    metric, value = METRICS[name], metrics[f"{split}/{name}"]
    if metric.unit == "%":
        interval = "" if ci95 is None else f" ± {metric.scale * ci95:.2f}"
        return [f"{metric.scale * value:.2f}{interval} %"]
    interval = "" if ci95 is None else f" ± {ci95:.2g}"
    return [f"{name} {value:.4g}{interval}"]


def _primary(metrics: Mapping[str, float | None], split: str) -> str | None:
    """Return the name of the primary metric among those of a split; None where there is none."""
    return next((name for name in PRIMARY if f"{split}/{name}" in metrics), None)
