"""Read from runs what accuracy they lose on other sources than their own, to set beside how far these are apart."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metatrain.config.evaluation_overrides import split_tasks_file
from metatrain.config.shipped import find_config
from metatrain.report.collect import read_object
from metatrain.report.documents import check_results
from metatrain.runs import Run
from metatrain.similarity.correlation import spearman_interval
from metatrain.similarity.distances import Interval
from metatrain.similarity.sources import Source
from metatrain.validation import require

_SAME_TASKS = (
    "evaluation.tasks",
    "evaluation.baselines",
    "evaluation.from_scratch_tasks",
    "executor",
    "engine",
    "tracking",
)
"""Settings, and sections of them, under which an evaluation is still one on the tasks of the file."""

LEAST = 3
"""Results that have a rank correlation."""


class Transfer(NamedTuple):
    """What a run that was trained on one source makes of another, in shares of 1; `loss` is reference − accuracy."""

    run: str
    trained_on: str
    tested_on: str
    at_home: float
    accuracy: float
    reference: float
    """The accuracy at home, or that of runs trained on the source tested on (`against_own_runs`)."""

    @property
    def loss(self) -> float:
        """Return how much accuracy the run loses on the other source."""
        return self.reference - self.accuracy


def read_transfers(home: Run, trained_on: Source, sources: Sequence[Source]) -> list[Transfer]:
    """Return what the run's records say of each other source: those of `metatrain evaluate RUN tasks=FILE`.

    At home it has the accuracy of its own test. Of several evaluations on a file, the one of the most tasks counts.
    ValueError: one is missing, or has no accuracy.
    """
    evaluations = {path: read_object(path) for path in sorted(home.evaluations.glob("[!.]*.json"))}
    rows = [(found.get("overrides") or [], check_results(found, path)[:1]) for path, found in evaluations.items()]
    told = [([*map(str, overrides)], row[0]) for overrides, row in rows if row]
    at_home = _best([row for overrides, row in told if not overrides])
    require(at_home is not None, f"{home.where}: holds no test results: run `metatrain evaluate {home.where}`")
    found = []
    for source in sources:
        if source is trained_on:
            continue
        best = _best([row for overrides, row in told if _is_on(overrides, source)])
        missing = f"{home.where}: holds no result on {source.file}"
        require(best is not None, f"{missing}: run `metatrain evaluate {home.where} tasks={source.file}`")
        own, there = (_accuracy(home, row) for row in (at_home, best))
        found.append(Transfer(home.run_id, trained_on.name, source.name, own, there, own))
    return found


def against_own_runs(transfers: Sequence[Transfer]) -> list[Transfer]:
    """Return the transfers with the loss from the mean accuracy of the runs that were trained on the source tested on.

    It leaves out how much harder that source is than a run's own. Where a source has no such run, all are as given.
    """
    at_home: dict[str, dict[str, float]] = {}
    for one in transfers:
        at_home.setdefault(one.trained_on, {})[one.run] = one.at_home
    if any(one.tested_on not in at_home for one in transfers):
        return list(transfers)
    own = {source: sum(runs.values()) / len(runs) for source, runs in at_home.items()}
    return [one._replace(reference=own[one.tested_on]) for one in transfers]


def _is_on(overrides: Sequence[str], source: Source) -> bool:
    """Return whether an evaluation with these overrides is one on the test tasks of the file of `source`."""
    file, others = split_tasks_file(overrides)
    same = all(any(f"{one.partition('=')[0]}.".startswith(f"{key}.") for key in _SAME_TASKS) for one in others)
    return file is not None and same and find_config(file).resolve() == source.file.resolve()


def _best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return max(rows, key=lambda row: int(row["tasks"]), default=None)


def _accuracy(home: Run, row: Mapping[str, Any] | None) -> float:
    found = None if row is None else row.get("accuracy")
    if not isinstance(found, int | float):
        raise ValueError(f"{home.where}: its score is no accuracy: use runs on tasks with classes")
    return float(found)


def correlate(transfers: Sequence[Transfer], distances: Sequence[float]) -> Interval:
    """Return Spearman's correlation of the distance of the two sources and the loss, over the transfers."""
    return spearman_interval(np.array(distances), np.array([one.loss for one in transfers]))
