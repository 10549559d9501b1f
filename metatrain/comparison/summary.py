"""Draw conclusions from scores: the order of the runs, their differences, what cannot be told apart. Plain values.

What `summarize` returns is what `--json` prints and `metatrain.report.comparison_page` shows:

    tasks      what all runs were scored on: source, split, shape, number, seed
    kind       how the scores that are compared were predicted; score: which; higher_is_better
    runs       the best first; each with "results" by kind, "also" by name, "training_classes", "gap", "adaptation"
    pairs      differences of two runs, the better one first; groups: runs that cannot be told apart
    also       of each further set of tasks what it is, and the order of the runs on it
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from metatrain.comparison.candidates import Candidate
from metatrain.comparison.common_tasks import TaskSet
from metatrain.comparison.scoring import BOTH, TIMED_TASKS, Array, Kind, Scored
from metatrain.evaluation.by_source import average_ranks, estimate_by_source
from metatrain.evaluation.evaluate import INNER_STEP, final_calibration
from metatrain.evaluation.intervals import estimate, over_classes
from metatrain.evaluation.paired import Difference, indistinct_groups, paired_differences
from metatrain.metrics import METRICS, primary_of
from metatrain.runs.checkpoints import params_sha256
from metatrain.validation import require

CORRUPTED = ("corruption", "severity")
"""Settings of an evaluation that are told where images are corrupted."""


class Column(NamedTuple):
    """One set of tasks, and for each run its scores on it, or why there are none."""

    tasks: TaskSet
    scored: list[Scored | str]


def summarize(
    candidates: Sequence[Candidate], main: Column, also: Sequence[Column], training: Sequence[Scored | str]
) -> dict[str, Any]:
    """Return the whole comparison. main: of all runs; training: on tasks of the classes that each was trained on."""
    scored = [one for one in main.scored if isinstance(one, Scored)]
    kind, scores = choose_kind(scored), [primary_of(next(iter(one.by_kind.values()))).name for one in scored]
    score = scores[0]
    unlike = f"RUN…: these are scored by {' and '.join(sorted(set(scores)))}: name runs that are scored alike"
    require(len(set(scores)) == 1, unlike)
    runs = [
        _describe_run(i, candidate, one, kind, score)
        | _training(one, of_training, kind, score)
        | {"also": {column.tasks.name: _result_on(column.scored[i], kind, score) for column in also}}
        for i, (candidate, one, of_training) in enumerate(zip(candidates, scored, training, strict=True))
    ]
    order = _best_first(runs, kind, score)
    ranked = [runs[i] for i in order]
    _add_ranks(ranked, kind, score)
    pairs, groups = compare_scores([scored[i] for i in order], [runs[i]["label"] for i in order], kind, score)
    return {
        "tasks": describe_tasks(main.tasks),
        "kind": kind,
        "score": score,
        "runs": ranked,
        "pairs": pairs,
        "groups": groups,
        "also": [_describe_column(column, runs, score) for column in also],
    }


def _add_ranks(runs: Sequence[dict[str, Any]], kind: Kind, score: str) -> None:
    """Note in each run that was judged in this kind its average rank over the sources of a mixture."""
    alike = [run for run in runs if run["kind"] == kind and run["results"][kind]["by_source"]]
    values = [{name: one["value"] for name, one in run["results"][kind]["by_source"].items()} for run in alike]
    for run, rank in zip(alike, average_ranks(values, METRICS[score].sign), strict=True):
        run["average_rank"] = rank


def choose_kind(scored: Sequence[Scored]) -> Kind:
    """Return how scores are compared: the kind that most runs have; of two such the one that the first run trained."""
    own = next(iter(scored[0].by_kind))
    counts = {kind: sum(kind in one.by_kind for one in scored) for kind in BOTH}
    return max(BOTH, key=lambda kind: (counts[kind], kind == own))


def describe_scores(
    scores: Mapping[str, Tensor], classes: Array | None, score: str, sources: Sequence[str] = ()
) -> dict[str, Any]:
    """Return mean and intervals of `score` after the last inner step, the means of the others, and the curve.

    sources: of each task, where they are of several.
    """
    mean, ci95 = estimate(METRICS[score], scores[score])
    of_classes = None if classes is None else over_classes(scores[score][:, -1], classes, sources)
    steps = [int(step) for step in scores[INNER_STEP][0]]
    calibration = final_calibration(scores)
    return {
        "value": float(mean[-1]),
        "ci95": float(ci95[-1]),
        "ci95_classes": None if of_classes is None else of_classes.ci95,
        "classes": None if of_classes is None else of_classes.classes,
        "tasks": len(scores[score]),
        "metrics": {name: _estimated(name, values[:, -1]) for name, values in scores.items() if name != INNER_STEP},
        "calibration": None if calibration is None else asdict(calibration),
        "curve": {"steps": steps, "mean": mean.tolist(), "ci95": ci95.tolist()},
        "by_source": {
            name: asdict(one) | ({"ci95": None} if one.tasks < 2 else {})
            for name, one in estimate_by_source(METRICS[score], scores[score][:, -1], sources).items()
        },
    }


def _estimated(name: str, values: Tensor) -> dict[str, float]:
    value, ci95 = estimate(METRICS[name], values)
    return {"value": float(value), "ci95": float(ci95)}


def compare_scores(
    scored: Sequence[Scored], labels: Sequence[str], kind: Kind, score: str
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Return the differences of all pairs that were judged in this kind, and the groups that cannot be told apart."""
    alike = [(label, one) for label, one in zip(labels, scored, strict=True) if kind in one.by_kind]
    if len(alike) < 2:
        return [], [[label] for label, _ in alike]
    table = np.stack([one.by_kind[kind][score][:, -1].numpy() for _, one in alike], axis=1)
    found = paired_differences(table, classes=alike[0][1].classes, sources=alike[0][1].sources)
    apart = [(one.first, one.second) for one in found if one.apart]
    names = [label for label, _ in alike]
    groups = [[names[i] for i in group] for group in indistinct_groups(len(names), apart)]
    return [describe_difference(one, names) for one in found], groups


def describe_difference(one: Difference, names: Sequence[str]) -> dict[str, Any]:
    """Return a difference under the names of its two sides."""
    plain = {key: value for key, value in one._asdict().items() if key not in ("first", "second")}
    return {"first": names[one.first], "second": names[one.second], **plain, "apart": one.apart}


def _describe_run(number: int, candidate: Candidate, scored: Scored, kind: Kind, score: str) -> dict[str, Any]:
    config, timing = candidate.trained, scored.timing
    return {
        "label": candidate.label,
        "number": number,
        "run_id": candidate.home.run_id,
        "run_dir": candidate.home.where,
        "settings": list(candidate.own),
        "algorithm": config.names.algorithm,
        "model": config.names.model,
        "params_sha256": params_sha256(candidate.params),
        "as_trained": next(iter(scored.by_kind)),
        "kind": kind if kind in scored.by_kind else next(iter(scored.by_kind)),
        "results": {
            one: describe_scores(found, scored.classes, score, scored.sources) for one, found in scored.by_kind.items()
        },
        "adaptation": None if timing is None else {**timing._asdict(), "tasks": TIMED_TASKS, "threads": 1},
    }


def _result_on(scored: Scored | str, kind: Kind, score: str) -> dict[str, Any]:
    """Return the result on further tasks, or why there is none."""
    if isinstance(scored, str):
        return {"refused": scored}
    chosen: Kind = kind if kind in scored.by_kind else next(iter(scored.by_kind))
    return {"kind": chosen, **describe_scores(scored.by_kind[chosen], scored.classes, score, scored.sources)}


def _training(scored: Scored, training: Scored | str, kind: Kind, score: str) -> dict[str, Any]:
    """Return the result on classes trained on, and the gap: how much better it is there than on test classes.

    The two are of different tasks, so that the variances of their means add up.
    """
    seen = _result_on(training, kind, score)
    if "refused" in seen:
        return {"training_classes": seen, "gap": None}
    held_out = _result_on(scored, seen["kind"], score)
    sign = METRICS[score].sign
    gap = {"value": sign * (seen["value"] - held_out["value"]), "ci95": math.hypot(seen["ci95"], held_out["ci95"])}
    return {"training_classes": seen, "gap": gap}


def _best_first(runs: Sequence[Mapping[str, Any]], kind: Kind, score: str) -> list[int]:
    """Return the numbers of the runs, the best first; those that are not judged in the common kind last."""
    sign = -METRICS[score].sign

    def rank(number: int) -> tuple[bool, float]:
        run = runs[number]
        value = run["results"][run["kind"]]["value"]
        return run["kind"] != kind, math.inf if math.isnan(value) else sign * value

    return sorted(range(len(runs)), key=rank)


def describe_tasks(tasks: TaskSet) -> dict[str, Any]:
    """Return what tasks are: source, split, shape, number and seed."""
    shape, evaluation = tasks.shape, tasks.config.evaluation
    changed = {} if evaluation.corruption is None else {name: getattr(evaluation, name) for name in CORRUPTED}
    return changed | {
        "name": tasks.name,
        "source": tasks.config.names.tasks,
        "split": tasks.split,
        **asdict(shape),
        "tasks": evaluation.tasks,
        "seed": evaluation.seed,
    }


def _describe_column(column: Column, runs: Sequence[Mapping[str, Any]], score: str) -> dict[str, Any]:
    """Return what further tasks are, and the labels of the runs in their order there."""
    name, sign = column.tasks.name, -METRICS[score].sign
    there = [run for run in runs if "refused" not in run["also"][name]]
    order = sorted(there, key=lambda run: sign * run["also"][name]["value"])
    return {**describe_tasks(column.tasks), "order": [run["label"] for run in order]}
