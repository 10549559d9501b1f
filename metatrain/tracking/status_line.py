"""Where a run stands, as a line that people read and that can be read back: of a job its log is all that one has.

120/500  0:12, 0:38 left · train loss 0.310, 89.20 % · validation 95.10 ± 0.40 % · best 95.30 ± 0.41 % at step 100
· 45 tasks/s · 2 workers            (all in one line)
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from metatrain.tracking.jsonl import read_lines

_NUMBER = r"[-+\w.]+"
_COUNT = r"\d{1,15}"
_TIME = rf"{_COUNT}(?::{_COUNT}){{0,2}}"
_SCORE = (
    rf"(?:(?P<accuracy>{_NUMBER})(?: ± (?P<percent>{_NUMBER}))? %|mse (?P<mse>{_NUMBER})(?: ± (?P<ci95>{_NUMBER}))?)"
)
_LINE = re.compile(
    rf"^training (?P<step>{_COUNT})/(?P<total>{_COUNT})  (?P<seconds>{_TIME}), (?P<left>{_TIME}|\?) left"
    r"(?: · (?P<parts>.*))?$"
)
_PARTS = {
    "train": re.compile(rf"train (?:loss (?P<loss>{_NUMBER}))?(?:, )?(?:{_SCORE})?"),
    "validation": re.compile(rf"validation {_SCORE}"),
    "best": re.compile(rf"best {_SCORE} at step (?P<step>{_COUNT})"),
    "time": re.compile(rf"(?P<tasks_per_second>{_NUMBER}) tasks/s"),
    "cluster": re.compile(rf"(?P<workers>{_COUNT}) workers?"),
}
_RECENT = 50
"""Steps over which a pace is taken."""
_PAUSE, _PAUSE_S = 20.0, 60.0
"""A step that took so many times the usual, and so many seconds, had a pause before it."""


@dataclass(frozen=True)
class Standing:
    """`seconds` since step `first`; metrics by name, "best/…" of the best validation. tested: it came to its end."""

    step: int
    total: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    first: float = 0.0
    tested: bool = False

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None before there is one."""
        done = self.step - self.first
        return self.seconds * (self.total - self.step) / done if done > 0 else None

    def line(self) -> str:
        """For people, and for `parsed`."""
        return f"{self.step}/{self.total}  {self.text()}"

    def text(self) -> str:
        """The line without its step."""
        times = (
            f"{duration(self.seconds)}, {time_left(self.step - self.first, self.total - self.first, self.seconds)} left"
        )
        return " · ".join([times, *described(self.metrics)])

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for --json."""
        left = self.seconds_left
        times = {"seconds": round(self.seconds, 1), "seconds_left": left if left is None else round(left, 1)}
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        return {"step": self.step, "steps": self.total, **times, **metrics}


def parsed(text: str) -> Standing | None:
    """The standing that a line of the log tells, to the digits that it shows; None where it tells none."""
    found = _LINE.match(text)
    if found is None:
        return None
    try:
        metrics = _metrics(found["parts"] or "")
    except ValueError:  # a word where a number should stand: somebody else's line
        return None
    step, total, seconds = int(found["step"]), int(found["total"]), _seconds(found["seconds"])
    left = 0.0 if found["left"] == "?" else _seconds(found["left"])
    first = step if found["left"] == "?" else step - seconds * (total - step) / left if left else 0.0
    return Standing(step, total, seconds, metrics, max(0.0, first))


def _metrics(parts: str) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for part in parts.split(" · "):
        for group, pattern in _PARTS.items():
            if told := pattern.fullmatch(part):
                metrics |= {f"{group}/{name}": value for name, value in _values(told.groupdict()).items()}
    return metrics


def _values(told: Mapping[str, str | None]) -> dict[str, float]:
    values = {name: float(text) for name, text in told.items() if text}
    if "accuracy" in values:
        values["accuracy"] = round(values["accuracy"] / 100, 6)
    if "percent" in values:
        values["ci95"] = round(values.pop("percent") / 100, 6)
    return values


def of_run(metrics_file: Path, total: int) -> Standing | None:
    """What the metrics.jsonl of a run tells, pauses between its parts left out; None where it has no step yet."""
    if not metrics_file.exists():
        return None
    records = [line for line in read_lines(metrics_file) if "event" not in line]
    trained = [record for record in records if any(name.startswith("train/") for name in record)]
    if not trained:
        return None
    metrics: dict[str, float] = {}
    for record in records:
        metrics = with_newest(metrics, int(record["step"]), record)
    gaps = [
        ((after["time"] - before["time"]) / (after["step"] - before["step"]), after["step"] - before["step"])
        for before, after in pairwise(trained)
        if after["step"] > before["step"]
    ]
    pace = median([seconds for seconds, _ in gaps[-_RECENT:]]) if gaps else 0.0
    spent = sum(seconds * steps for seconds, steps in gaps if seconds <= max(_PAUSE_S, _PAUSE * pace))
    step = trained[-1]["step"]
    first = step - spent / pace if pace > 0 else step
    return Standing(step, total, spent, metrics, first, any(name.startswith("test/") for name in chain(*records)))


def with_newest(known: Mapping[str, float], step: int, metrics: Mapping[str, float | None]) -> dict[str, float]:
    """What was known, with newer values, and "best/…" where these are of a better validation."""
    newest = dict(known) | {
        name: value
        for name, value in metrics.items()
        if name.startswith(("train/", "validation/", "time/", "cluster/")) and isinstance(value, (int, float))
    }
    if "validation/accuracy" in metrics or "validation/mse" in metrics:
        score = "accuracy" if "validation/accuracy" in metrics else "mse"
        here, best = newest.get(f"validation/{score}"), known.get(f"best/{score}")
        better = here is not None and (best is None or (here > best if score == "accuracy" else here < best))
        if better:
            told = {name: newest[f"validation/{name}"] for name in (score, "ci95") if f"validation/{name}" in newest}
            newest |= {f"best/{name}": value for name, value in told.items()} | {"best/step": step}
    return newest


def described(metrics: Mapping[str, float]) -> list[str]:
    """The parts of a line: train loss and score, newest and best validation, tasks/s, workers; what is there."""
    parts = []
    train = [f"loss {metrics['train/loss']:.3f}"] if "train/loss" in metrics else []
    if train := [*train, *_score(metrics, "train")]:
        parts.append("train " + ", ".join(train))
    if validation := _score(metrics, "validation"):
        parts.append("validation " + validation[0])
    if best := _score(metrics, "best"):
        parts.append(f"best {best[0]} at step {metrics['best/step']:.0f}")
    if "time/tasks_per_second" in metrics:
        parts.append(f"{metrics['time/tasks_per_second']:.4g} tasks/s")
    if "cluster/workers" in metrics:
        workers = round(metrics["cluster/workers"])
        parts.append(f"{workers} worker{'s' * (workers != 1)}")
    return parts


def _score(metrics: Mapping[str, float], split: str) -> list[str]:
    ci95 = metrics.get(f"{split}/ci95")
    if f"{split}/accuracy" in metrics:
        interval = "" if ci95 is None else f" ± {100 * ci95:.2f}"
        return [f"{100 * metrics[f'{split}/accuracy']:.2f}{interval} %"]
    if f"{split}/mse" in metrics:
        interval = "" if ci95 is None else f" ± {ci95:.2g}"
        return [f"mse {metrics[f'{split}/mse']:.4g}{interval}"]
    return []


def time_left(done: float, total: float, seconds: float) -> str:
    """How long `total - done` will take at the pace of the first `done`; "?" before there is a pace."""
    return duration(seconds * (total - done) / done) if done > 0 else "?"


def duration(seconds: float) -> str:
    """0:07, 12:30 or 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _seconds(text: str) -> float:
    seconds = 0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)


def last_told(lines: Iterable[str]) -> Standing | None:
    """The last standing among lines of a log."""
    return next((standing for line in reversed(list(lines)) if (standing := parsed(line)) is not None), None)
