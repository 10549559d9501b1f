"""State the shape of the files that a report reads, and check that a stranger's have it."""

import math
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from metatrain.metrics import METRICS
from tasks.io.json_documents import check_json

Settings = TypedDict(
    "Settings",
    {
        "outer.steps": int,
        "outer.tasks_per_step": int,
        "runs.name": str | None,
        "tracking.uri": str | None,
        "algorithm.name": str,
        "model.name": str,
        "tasks.name": str,
    },
    total=False,
)
"""The settings that a report computes with; all others it shows as they are."""


class Curve(TypedDict):
    """The score after each number of inner steps."""

    steps: list[int]
    mean: list[float]
    ci95: list[float | None]


class CalibrationCurve(TypedDict):
    """How often predictions came true, by their probability."""

    predicted: list[float]
    observed: list[float]
    share: list[float]


class MetricRow(TypedDict):
    """A metric over all tasks."""

    value: float
    ci95: float | None


class SourceRow(MetricRow):
    """The score over the tasks of one source."""

    tasks: int


class Row(TypedDict):
    """One learner's result; its score, a metric of the registry, stands under the score's own name."""

    learner: str
    score: str
    ci95: float | None
    tasks: int
    ci95_classes: NotRequired[float | None]
    classes: NotRequired[int | None]
    loss: NotRequired[float | None]
    metrics: NotRequired[dict[str, MetricRow]]
    split: NotRequired[str]
    transductive: NotRequired[bool]
    curve: NotRequired[Curve]
    calibration: NotRequired[CalibrationCurve | None]
    by_source: NotRequired[dict[str, SourceRow]]


class Results(TypedDict):
    """A file of evaluations/."""

    test: NotRequired[Row | None]
    test_inductive: NotRequired[Row | None]
    test_transductive: NotRequired[Row | None]
    overrides: NotRequired[list[str] | None]
    baselines: NotRequired[list[Row]]


class Environment(TypedDict, total=False):
    """An environment.json."""

    python: str
    platform: str
    cpu: dict[str, Any] | None
    versions: dict[str, Any] | None
    git: dict[str, Any] | None
    command: list[Any] | None
    job: str | None


def check_results(found: object, path: Path) -> list[dict[str, Any]]:
    """Return the rows of an evaluation. ValueError: what is wrong with it."""
    remedy = "remove that file and run `metatrain evaluate` again"
    results = check_json(found, Results, str(path), remedy)
    found_rows = [results.get(key) for key in ("test", "test_inductive", "test_transductive")]
    rows: list[dict[str, Any]] = [row for row in [*found_rows, *results.get("baselines", [])] if row is not None]
    for row in rows:
        curve = row.get("curve")
        row.setdefault("transductive", False)
        row["metrics"] = {name: one for name, one in row.get("metrics", {}).items() if name in METRICS}
        score = row.get(row["score"])
        sound = row["score"] in METRICS and isinstance(score, (int, float)) and not isinstance(score, bool)
        calibration = row.setdefault("calibration", None)
        sound = sound and all(
            table is None or len({len(part) for part in table.values()}) == 1 for table in (curve, calibration)
        )
        sound = sound and (curve is None or all(step >= 0 for step in curve["steps"]))
        sound = sound and all(math.isnan(value) or abs(value) < 1e30 for value in _numbers(row))
        if not sound:
            raise ValueError(f"{path}: no evaluation: {remedy}")
    return rows


def _numbers(row: dict[str, Any]) -> list[float]:
    curve = row.get("curve") or {"mean": [], "ci95": []}
    margins = [row["ci95"], row.get("ci95_classes"), *curve["ci95"]]
    numbers = [row[row["score"]], row.get("loss"), *curve["mean"]]
    numbers += [number for metric in row["metrics"].values() for number in (metric["value"], metric["ci95"])]
    numbers += [number for one in row.get("by_source", {}).values() for number in (one["value"], one["ci95"])]
    numbers += [number for values in (row["calibration"] or {}).values() for number in values]
    return [value for value in [*numbers, *margins] if value is not None]
