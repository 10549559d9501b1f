"""Say a comparison of runs in sentences and cells, for its page and for a terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metatrain.metrics import METRICS, Metric
from metatrain.report.text import count, format_interval
from tasks.ragged_shape import describe_size

NONE = "–"
CALIBRATION = ("ece", "log_likelihood", "brier")
"""Metrics of how well a run knows what it knows."""
PAIRS_CAPTION = (
    "Differences on the same tasks, the better run first: mean ± half its 95 % interval over tasks (paired Student t), "
    "the same for all pairs at once (max-t by sign flips), over classes (jackknife); p-values corrected by Holm"
)
SOURCES_CAPTION = (
    "By source, mean over its tasks ± half the width of its 95 % interval; the average rank is over sources, "
    "1 for the best"
)
PAIR_COLUMNS = ("better − worse", "difference", "all at once", "over classes", "p", "p over classes", "told apart")


def introduction(found: Mapping[str, Any]) -> str:
    """Say on which tasks all runs were scored, and how."""
    runs, kind = found["runs"], found["kind"]
    both = f"{'All are' if len(runs) > 1 else 'It is'} judged {kind}"
    apart = [run["label"] for run in runs if run["kind"] != kind]
    if apart:
        both = f"They are judged {kind}, except {', '.join(apart)}, which cannot be and which nothing is compared with"
    return f"The same tasks for all: {describe_tasks(found['tasks'])}. {both}."


def describe_tasks(tasks: Mapping[str, Any]) -> str:
    """Say what tasks are: strokes, 5-way 1-shot, 15 queries a class, 600 test tasks of seed 0."""
    size = describe_size(tasks["ways"], tasks["shots"], tasks["queries"])
    size += f", by the sampler {tasks['sampler']}" if tasks.get("sampler", "uniform") != "uniform" else ""
    size += f", images corrupted by {tasks['corruption']} {tasks['severity']}" if "corruption" in tasks else ""
    return f"{tasks['source']}, {size}, {count(tasks['tasks'])} {tasks['split']} tasks of seed {tasks['seed']}"


def columns(found: Mapping[str, Any]) -> list[str]:
    """Return the headings of the table of runs."""
    title = METRICS[found["score"]].title
    headings = ["run", "algorithm", title, "over classes"]
    headings += [_other(found["kind"])] if _has_other(found) else []
    headings += ["ECE"] if _calibrated(found) else []
    headings += ["gap", *(one["name"] for one in found["also"])]
    return [*headings, "adaptation", *(["group"] if found["pairs"] else [])]


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table of runs, the best first."""
    metric, letters = METRICS[found["score"]], group_letters(found["groups"])
    return [
        [*_cells(found, run, metric), *([letters[run["label"]]] if found["pairs"] else [])] for run in found["runs"]
    ]


def _cells(found: Mapping[str, Any], run: Mapping[str, Any], metric: Metric) -> Iterator[str]:
    result = run["results"][run["kind"]]
    yield from (run["label"], run["algorithm"], format_result(result, metric), format_over_classes(result, metric))
    if _has_other(found):
        other = run["results"].get(_other(found["kind"])) if run["kind"] == found["kind"] else None
        yield NONE if other is None else format_result(other, metric)
    if _calibrated(found):
        yield format_metric(run, "ece", interval=False)
    yield _gap(run, metric)
    for one in found["also"]:
        yield format_result(run["also"][one["name"]], metric)
    timing = run["adaptation"]
    yield NONE if timing is None else format_seconds(timing["seconds"][-1])


def group_letters(groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the letters of the groups that each run is in: runs that share a letter cannot be told apart."""
    found: dict[str, str] = {}
    for number, group in enumerate(groups):
        letter = chr(ord("a") + number) if number < 26 else f"({number + 1})"
        for label in group:
            found[label] = found.get(label, "") + letter
    return _WithNone(found)


class _WithNone(dict[str, str]):
    """Letters of runs, of which some are in no group."""

    def __missing__(self, label: str) -> str:
        return NONE


def _calibrated(found: Mapping[str, Any]) -> list[str]:
    """Return the metrics of calibration that the runs have."""
    of_runs = [run["results"][run["kind"]]["metrics"] for run in found["runs"]]
    return [name for name in CALIBRATION if all(name in metrics for metrics in of_runs)]


def format_metric(run: Mapping[str, Any], name: str, interval: bool = True) -> str:
    """Return a metric of a run beside its score, with half its interval over tasks if asked for."""
    one, metric = run["results"][run["kind"]]["metrics"][name], METRICS[name]
    half = metric.scale * one["ci95"] if interval else math.nan
    return format_interval(metric.scale * one["value"], half, metric.unit)


def calibration_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of calibration, its headings first; empty for tasks without classes."""
    if not (names := _calibrated(found)):
        return []
    rows = [[run["label"], *(format_metric(run, name) for name in names)] for run in found["runs"]]
    return [["run", *(METRICS[name].title for name in names)], *rows]


def training_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of scores on held-out classes and on classes trained on, its headings first."""
    metric = METRICS[found["score"]]
    rows = [
        [
            run["label"],
            format_result(run["results"][run["kind"]], metric),
            format_result(run["training_classes"], metric),
            _gap(run, metric),
        ]
        for run in found["runs"]
    ]
    return [["run", f"{found['tasks']['split']} classes", "training classes", "gap"], *rows]


def source_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of scores by source of a mixture with the average ranks, its headings first; else none."""
    runs, metric = [run for run in found["runs"] if "average_rank" in run], METRICS[found["score"]]
    if not runs:
        return []
    rows = []
    for run in runs:
        sources = run["results"][run["kind"]]["by_source"]
        cells = [format_result(one, metric) for one in sources.values()]
        rows.append([run["label"], *cells, f"{run['average_rank']:.2f}"])
    return [["run", *runs[0]["results"][runs[0]["kind"]]["by_source"], "average rank"], *rows]


def _gap(run: Mapping[str, Any], metric: Metric) -> str:
    return NONE if run["gap"] is None else format_difference(run["gap"]["value"], run["gap"]["ci95"], metric)


def _has_other(found: Mapping[str, Any]) -> bool:
    """Return whether any run was judged the other way too."""
    return any(len(run["results"]) > 1 for run in found["runs"])


def _other(kind: str) -> str:
    return "inductive" if kind == "transductive" else "transductive"


def format_result(result: Mapping[str, Any], metric: Metric) -> str:
    """Return a score with half its interval over tasks, 95.54 ± 0.36 %; "–" where there is none."""
    if "refused" in result:
        return NONE
    half = math.nan if result["ci95"] is None else metric.scale * result["ci95"]
    return format_interval(metric.scale * result["value"], half, metric.unit)


def format_over_classes(result: Mapping[str, Any], metric: Metric) -> str:
    """Return half the interval over classes."""
    half = result.get("ci95_classes")
    return NONE if half is None else format_half(half, metric)


def format_difference(value: float, half: float, metric: Metric) -> str:
    """Return a difference with its sign: +1.20 ± 0.40 points."""
    if metric.unit == "%":
        text = f"{metric.scale * value:+.2f} ± {metric.scale * half:.2f} points"
        return text.replace(" ", "\N{NO-BREAK SPACE}")
    sign = "+" if value >= 0 else ""
    return sign + format_interval(metric.scale * value, metric.scale * half, metric.unit)


def format_half(half: float, metric: Metric) -> str:
    """Return half the width of an interval: ± 0.40."""
    text = f"{metric.scale * half:.2f}" if metric.unit else f"{metric.scale * half:.2g}"
    return f"±\N{NO-BREAK SPACE}{text}"


def format_seconds(seconds: float) -> str:
    """Return a duration: 3.4 ms."""
    return f"{1000 * seconds:.3g}\N{NO-BREAK SPACE}ms" if seconds < 1 else f"{seconds:.3g}\N{NO-BREAK SPACE}s"


def format_p(p: float | None) -> str:
    """Return a p-value: 0.034, 2e-08; "–" for none."""
    if p is None:
        return NONE
    return "<\N{NO-BREAK SPACE}1e-15" if p < 1e-15 else f"{p:.2g}"


def pair_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table of differences."""
    metric = METRICS[found["score"]]
    return [
        [
            f"{pair['first']} − {pair['second']}",
            format_difference(pair["value"], pair["ci95"], metric),
            format_half(pair["simultaneous"], metric),
            NONE if pair["ci95_classes"] is None else format_half(pair["ci95_classes"], metric),
            format_p(pair["p_holm"]),
            format_p(pair["p_classes_holm"]),
            told_apart(pair),
        ]
        for pair in found["pairs"]
    ]


def told_apart(pair: Mapping[str, Any]) -> str:
    """Say whether chance alone explains a difference: on other tasks of these classes, and on other classes."""
    if not pair["apart"]:
        return "no"
    over_classes = pair["p_classes_holm"]
    return "yes, on other classes too" if over_classes is not None and over_classes <= 0.05 else "yes"


def notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what to know beside the tables: what cannot be told apart, what was refused, how speed was measured."""
    if found["pairs"]:
        yield summary_of_groups(found)
    timings = [run["adaptation"] for run in found["runs"] if run["adaptation"]]
    if timings:
        yield (
            "Adaptation: seconds of one task on this machine, measured (processor time, median of "
            f"{timings[0]['tasks']} tasks, one thread, eagerly), without predicting the queries."
        )
    yield (
        "Gap: how much better on tasks of the same shape from classes that the run was trained on; far above zero, it "
        "has fitted those classes."
    )
    for run in found["runs"]:
        for name, result in ({"training classes": run["training_classes"]} | run["also"]).items():
            if "refused" in result:
                yield f"{name}: {result['refused']}"


def summary_of_groups(found: Mapping[str, Any]) -> str:
    """Say which runs cannot be told apart."""
    groups = [group for group in found["groups"] if len(group) > 1]
    if not groups:
        return "Every two runs are told apart on tasks of these classes."
    named = "; ".join(", ".join(group) for group in groups)
    return f"Not told apart on tasks of these classes (corrected by Holm, 5 % for all statements together): {named}."
