"""Say the results of an ablation in cells and sentences, for its page and for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from metatrain.metrics import METRICS, Metric
from metatrain.report import comparison_text as text
from metatrain.report.text import count

COLUMNS = ("variant", "score", "difference", "all at once", "over classes", "by seed", "p", "verdict")


def introduction(found: Mapping[str, Any]) -> str:
    """Say what was trained and on which tasks it was scored."""
    seeds, many = found["seeds"], len(found["variants"])
    kind = f", {found['kind']}" if found["kind"] else ", each as it was trained"
    of_seeds = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    return (
        f"The base and {count(many - 1)} change{'' if many == 2 else 's'} of it, trained with {of_seeds}, on the same "
        f"tasks: {text.describe_tasks(found['tasks'])}{kind}."
    )


def columns(found: Mapping[str, Any]) -> list[str]:
    """Return the headings of the table."""
    return [METRICS[found["score"]].title if name == "score" else name for name in COLUMNS]


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table, in the order of the plan: the base first."""
    metric = METRICS[found["score"]]
    return [[row["label"], *_cells(row, metric)] for row in found["variants"]]


def _cells(row: Mapping[str, Any], metric: Metric) -> Iterator[str]:
    score, difference = row["score"], row["difference"]
    yield text.NONE if score is None else text.format_result(score, metric)
    if difference is None:
        yield from [text.NONE] * 5
        yield "failed" if score is None else ""
        return
    yield text.format_difference(difference["value"], difference["ci95"], metric)
    yield text.format_half(difference["simultaneous"], metric)
    over = difference["ci95_classes"]
    yield text.NONE if over is None else text.format_half(over, metric)
    by_seed, half = difference["seeds"]["values"], difference["seeds"]["ci95"]
    each = ", ".join(signed(value, metric) for value in by_seed)
    yield text.NONE if half is None else f"{each} ({text.format_half(half, metric)})"
    yield text.format_p(difference["p_holm"])
    yield verdict(difference, metric)


def signed(value: float, metric: Metric) -> str:
    """Return a number with its sign, without a unit: +1.20."""
    return f"{metric.scale * value:+.2f}" if metric.unit else f"{metric.scale * value:+.3g}"


def verdict(difference: Mapping[str, Any], metric: Metric) -> str:
    """Say what a difference shows: better, worse, or not told apart."""
    if not difference["apart"]:
        return "not told apart"
    return "better" if metric.sign * difference["value"] > 0 else "worse"


def notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what to know beside the table: what the intervals are about, and what failed."""
    yield (
        "Differences from the base with the same seeds, on each task the mean over seeds: ± half the 95 % interval "
        "over tasks (paired Student t), for all changes at once (max-t by sign flips), over classes (jackknife); "
        "p-values are corrected by Holm."
    )
    if len(found["seeds"]) == 1:
        yield "One seed: what another training of the same settings would give is not in any interval. Add --seeds."
    else:
        yield "By seed: the difference with each, and ± over seeds (Student t of few numbers), on these tasks."
    for row in found["variants"]:
        for seed, reason in row["failures"].items():
            yield f"{row['label']}, seed {seed}: {reason}"
