"""Compare the variants of an ablation with its base, on the same tasks and with the same seeds. Plain values.

What `summarize_ablation` returns is what `--json` prints and `tune.report.ablation_page` shows: the scores of the base
and, of each variant, its difference from the base, on each task the mean over the seeds that both have.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from metatrain.comparison.common_tasks import TaskSet
from metatrain.comparison.scoring import Array, Scored
from metatrain.comparison.summary import describe_tasks
from metatrain.evaluation.intervals import mean_and_ci95, over_classes
from metatrain.evaluation.paired import paired_differences
from metatrain.metrics import primary_of
from metatrain.validation import require
from tune.ablation.plan import Axis, Variant

Key = tuple[str, int]
"""The label of a variant and its seed."""


def summarize_ablation(
    variants: Sequence[Variant], scored: Mapping[Key, Scored], failures: Mapping[Key, str], tasks: TaskSet
) -> dict[str, Any]:
    """Return the ablation as plain values.

    scored: of each variant and seed that was trained, as it was trained. failures: why others were not. ValueError: no
    seed of the base was trained, so that nothing can be compared with it.
    """
    labels = list(dict.fromkeys(variant.label for variant in variants))
    seeds = list(dict.fromkeys(variant.seed for variant in variants))
    base = labels[0]
    lost = "; ".join(reason for (label, _), reason in failures.items() if label == base)
    require(any((base, seed) in scored for seed in seeds), f"the base was not trained with any seed: {lost}")
    name = primary_of(next(iter(next(iter(scored.values())).by_kind.values()))).name
    values = {key: next(iter(one.by_kind.values()))[name][:, -1].numpy() for key, one in scored.items()}
    shared = {label: [s for s in seeds if (label, s) in values and (base, s) in values] for label in labels}
    there = [label for label in labels if shared[label]]
    table = {label: np.stack([values[label, s] - values[base, s] for s in shared[label]], 1) for label in there}
    rows = [_describe(variants, label, scored, values, failures) for label in labels]
    alike = next(iter(scored.values()))
    found = _differences([table[label] for label in there], alike)
    for label, difference in zip(there[1:], found, strict=True):
        rows[labels.index(label)]["difference"] = difference
    kinds = {next(iter(one.by_kind)) for one in scored.values()}
    return {
        "tasks": describe_tasks(tasks),
        "score": name,
        "kind": kinds.pop() if len(kinds) == 1 else None,
        "seeds": seeds,
        "variants": rows,
    }


def _describe(
    variants: Sequence[Variant],
    label: str,
    scored: Mapping[Key, Scored],
    values: Mapping[Key, Array],
    failures: Mapping[Key, str],
) -> dict[str, Any]:
    """Return a variant with its score, on each task the mean over the seeds that were trained."""
    mine = [variant for variant in variants if variant.label == label]
    done = [variant.seed for variant in mine if (label, variant.seed) in values]
    plain: dict[str, Any] = {
        "label": label,
        "changes": mine[0].changes,
        "failures": {str(v.seed): failures[label, v.seed] for v in mine if (label, v.seed) in failures},
        "score": None,
        "difference": None,
    }
    if done:
        each = torch.from_numpy(np.stack([values[label, seed] for seed in done], 1).mean(1))
        mean, half = mean_and_ci95(each)
        one = scored[label, done[0]]
        over = None if one.classes is None else over_classes(each, one.classes, one.sources).ci95
        by_seed = {str(seed): float(values[label, seed].mean()) for seed in done}
        kind = next(iter(one.by_kind))
        intervals = {"ci95": float(half), "ci95_classes": over}
        plain["score"] = {"value": float(mean), **intervals, "by_seed": by_seed, "kind": kind}
    return plain


def _differences(tables: Sequence[Array], alike: Scored) -> list[dict[str, Any]]:
    """Return the differences from the base. tables: of the base, of zeros, and of each variant [tasks, seeds].

    alike: any of them, which tells the classes of the tasks and their sources.
    """
    each = np.stack([table.mean(1) for table in tables], 1)
    found = paired_differences(each, [(number, 0) for number in range(1, len(tables))], alike.classes, alike.sources)
    return [
        {key: value for key, value in one._asdict().items() if key not in ("first", "second")}
        | {"apart": one.apart, "seeds": _over_seeds(table)}
        for one, table in zip(found, tables[1:], strict=True)
    ]


def _over_seeds(table: Array) -> dict[str, Any]:
    """Return the difference with each seed [seeds], and half the 95 % interval of their mean; None for one seed.

    table: [tasks, seeds]. The interval is about other seeds on these tasks, by Student's t of few numbers.
    """
    means = torch.from_numpy(table.mean(0))
    half = None if len(means) < 2 else float(mean_and_ci95(means)[1])
    return {"values": means.tolist(), "ci95": half}


def by_axis(found: Mapping[str, Any], axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Return for each axis its name, the base's own value, and the labels of the variants that change it alone."""
    return [
        {
            "name": axis.name,
            "own": axis.own,
            "labels": [row["label"] for row in found["variants"] if list(row["changes"]) == [axis.name]],
        }
        for axis in axes
    ]
