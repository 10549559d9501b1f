"""Say the results of runs in sentences and formatted numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from metatrain.metrics import METRICS, PRIMARY
from metatrain.report.collect import AS_TRAINED, RunRecord
from tasks.ragged_shape import describe

LEARNER_NAMES = {
    "trained": "trained",
    "untrained": "the same network untrained",
    "nearest_neighbour": "nearest neighbour",
    "from_scratch": "learning each task from scratch",
}


def format_score(row: Mapping[str, Any]) -> str:
    """Return a score with half its 95 % interval over tasks: 97.31 ± 0.23 %."""
    metric = METRICS[row["score"]]
    return format_interval(metric.scale * row[row["score"]], metric.scale * margin(row), metric.unit)


def format_metric(row: Mapping[str, Any], name: str) -> str:
    """Return another metric of a row with half its interval over tasks; "–" where it was not computed."""
    found = row["metrics"].get(name)
    if found is None:
        return "–"
    metric = METRICS[name]
    return format_interval(metric.scale * found["value"], metric.scale * margin(found), metric.unit)


def format_source(row: Mapping[str, Any], name: str) -> str:
    """Return the score of a row over the tasks of one source with half its interval; "–" where there is none."""
    found = row.get("by_source", {}).get(name)
    if found is None:
        return "–"
    metric = METRICS[row["score"]]
    return format_interval(metric.scale * found["value"], metric.scale * margin(found), metric.unit)


def format_over_classes(row: Mapping[str, Any]) -> str:
    """Return half the 95 % interval over classes, ± 8.40 %; "–" where there is none."""
    if row.get("ci95_classes") is None:
        return "–"
    metric = METRICS[row["score"]]
    return f"± {metric.scale * row['ci95_classes']:.2f} {metric.unit}".strip().replace(" ", "\N{NO-BREAK SPACE}")


def margin(row: Mapping[str, Any]) -> float:
    """Return half the interval over tasks; nan for a single task, which has none."""
    return math.nan if row["ci95"] is None else float(row["ci95"])


def format_interval(value: float, margin: float, unit: str) -> str:
    """Return 93.40 ± 0.51 %, or 0.259 ± 0.051 nats, two figures of the margin, on one line; a margin of nan is left
    out.
    """
    if math.isnan(margin):
        text = f"{value:.2f}" if unit == "%" else f"{value:.4g}"
    elif unit == "%":
        text = f"{value:.2f} ± {margin:.2f}"
    else:
        decimals = min(9, max(0, 1 - math.floor(math.log10(margin)))) if 0 < margin < math.inf else 4
        text = f"{value:.{decimals}f} ± {margin:.{decimals}f}"
    return f"{text} {unit}".strip().replace(" ", "\N{NO-BREAK SPACE}")


def learner_name(learner: str) -> str:
    """Return the name of a learner for people."""
    return LEARNER_NAMES.get(learner, learner.replace("_", " "))


def status(record: RunRecord) -> str:
    """Return how far the run has come."""
    if record.finished:
        return f"finished: {count(record.total)} steps"
    if record.steps == 0:
        return "nothing recorded yet"
    return f"unfinished: {count(record.steps)} of {count(record.total)} steps"


def count(number: int) -> str:
    """Format a number: 60 000, its groups held together."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def summary(record: RunRecord) -> list[str]:
    """Return what was trained on what, and with which result: a paragraph, sentence by sentence."""
    extended = [f"Extended: {event.text}." for event in record.events if event.kind == "extended"]
    memory = [f"Memory of a worker: {event.text}." for event in record.events if event.kind == "memory"]
    return [_training(record), *extended, *_result(record), *memory[-1:]]


def _training(record: RunRecord) -> str:
    get = record.settings.get
    each, done = get("outer.tasks_per_step", 0), record.steps
    of = f"{_many(each, 'task')}, {_shape(record, 'train')} each"
    by = f"meta-trained by {get('algorithm.name')} on {get('tasks.name')}"
    if done == 0:
        return f"The network {get('model.name')} is to be {by} for {count(record.total)} steps of {of}."
    so_far = "" if record.finished else f" of {count(record.total)}"
    return (
        f"The network {get('model.name')} was {by} for {count(done)}{so_far} steps of {of}: {count(done * each)} tasks."
    )


def _result(record: RunRecord) -> list[str]:
    rows = _as_trained(record)
    if not rows:
        return ["It has not been tested yet: there is no result to report."]
    trained, others = rows[0], [row for row in rows[1:] if row["learner"] != "trained"]
    name = METRICS[trained["score"]].title
    sentence = (
        f"On {count(trained['tasks'])} held-out test tasks, {_shape(record, 'test')} each, it reaches "
        f"{'an' if name[0] in 'aeiou' else 'a'} {name} "
        f"of {format_score(trained)} (mean and 95 % interval over tasks, {kind(trained)})"
    )
    if None not in (trained.get("ci95_classes"), trained.get("classes")):
        over = f"{format_over_classes(trained)} over its {count(trained['classes'])} test classes"
        sentence = f"{sentence[:-1]}; {over}, for classes other than these)"
    sentence += "".join(
        f", and {format_score(row)} when its queries are judged {'together' if row['transductive'] else 'one by one'} "
        f"({kind(row)})"
        for row in rows[1:]
        if row["learner"] == "trained"
    )
    best = best_step(record)
    chosen = "" if best is None else f" Tested are the parameters of step {count(best)}, the best in validation."
    if not others:
        return [f"{sentence}.{chosen}"]
    *most, last = (f"{format_score(row)} of {learner_name(row['learner'])}" for row in others)
    against = f"{', '.join(most)} and {last}" if most else last
    return [f"{sentence}, against {against}.", _verdict(trained, others) + chosen]


def _as_trained(record: RunRecord) -> list[dict[str, Any]]:
    """Return the rows of the test that ended the run, the trained learner's first; none before there was one."""
    return next((tested.rows for tested in record.evaluations if tested.name == AS_TRAINED), [])


def best_first(records: Sequence[RunRecord]) -> list[int]:
    """Return the numbers of the runs, by their test result, the best first; those without one last, as they come."""
    rows = [_as_trained(record) for record in records]

    def rank(number: int) -> float:
        value = rows[number][0][rows[number][0]["score"]] if rows[number] else math.nan
        if math.isnan(value):
            return math.inf
        return -METRICS[rows[number][0]["score"]].sign * value

    return sorted(range(len(records)), key=rank)


def explain_drawn(drawn: int, runs: int) -> str:
    """Say which runs are drawn, where that is not all of them."""
    if drawn == runs:
        return ""
    return (
        f"Drawn are {drawn} of the {count(runs)} runs: those with the best results in their final test. The tables "
        "have all; name fewer runs to draw others."
    )


def comparison(records: Sequence[RunRecord], labels: Sequence[str]) -> str:
    """Return which of several runs did best, where they were tested on the same tasks."""
    tested = [
        (label, record, rows[0]) for label, record in zip(labels, records, strict=True) if (rows := _as_trained(record))
    ]
    if len(tested) < 2:
        return "Fewer than two of them have been tested."
    if len({_tested_on(record, row) for _, record, row in tested}) > 1:
        return "They were not tested on the same tasks: their scores cannot be compared."
    key = tested[0][2]["score"]
    in_order = sorted(tested, key=lambda each: each[2][key], reverse=METRICS[key].higher_is_better)
    scores = ", ".join(f"{label} {format_score(row)}" for label, _, row in in_order)
    first, second = (row for *_, row in in_order[:2])
    apart = abs(first[key] - second[key]) > margin(first) + margin(second)
    close = "" if apart else " The intervals of the first two meet."
    return f"Tested on the same {count(first['tasks'])} tasks, best first by {METRICS[key].title}: {scores}.{close}"


def _tested_on(record: RunRecord, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what decides which tasks a run was tested on, and how it was scored; where they are stored does not."""
    stored = ("tasks.train.", "tasks.root", "tasks.cache")
    deciding = [
        f"{key}={value}"
        for key, value in sorted(record.settings.items())
        if key == "evaluation.seed" or (key.startswith("tasks.") and not key.startswith(stored))
    ]
    return (row["score"], str(row["tasks"]), *deciding)


def _verdict(trained: Mapping[str, Any], others: list[dict[str, Any]]) -> str:
    """Compare the trained learner with the best of the others: by how much, and whether that may be chance."""
    key = trained["score"]
    metric, sign = METRICS[key], METRICS[key].sign
    best = max(others, key=lambda row: sign * row[key] if math.isfinite(row[key]) else -math.inf)
    ahead = sign * (trained[key] - best[key])
    apart = abs(ahead) > margin(trained) + margin(best)
    amount = f"{metric.scale * abs(ahead):.1f} points" if metric.unit == "%" else f"{abs(ahead):.3g}"
    if not apart:
        return f"That is no clear difference from {learner_name(best['learner'])}: the two intervals meet."
    among = ", the best of these" if len(others) > 1 else ""
    return f"That is {amount} {'better' if ahead > 0 else 'worse'} than {learner_name(best['learner'])}{among}."


def cut(text: str, length: int) -> str:
    """Cut text to what fits beside others."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def kind(row: Mapping[str, Any]) -> str:
    """Return whether the queries of a task helped each other."""
    return "transductive" if row.get("transductive") else "inductive"


def _shape(record: RunRecord, split: str) -> str:
    ways, shots, queries = (_number(record.settings, f"tasks.{split}.{key}") for key in ("ways", "shots", "queries"))
    if ways is None:
        return f"{_many(shots, 'support example')} and {_many(queries, 'query', 'queries')}"
    asked = _many(queries, "query", "queries") if isinstance(queries, int) else f"{describe(queries)} queries"
    return f"{describe(ways)}-way {describe(shots)}-shot with {asked} per class"


def _number(settings: Mapping[str, Any], key: str) -> Any:
    """Return the value of a setting that may be a range, whose ends are settings of their own."""
    ends = {end: settings[f"{key}.{end}"] for end in ("min", "max") if f"{key}.{end}" in settings}
    return ends or settings.get(key)


def explain_mismatch(records: Sequence[RunRecord]) -> str:
    """Explain why curves that are drawn together do not measure the same: of one run training and validation, of
    several their training. An empty text where they do.
    """
    if len(records) > 1:
        if len({(record.settings.get("tasks.name"), _shape(record, "train")) for record in records}) == 1:
            return ""
        return "The runs do not train on the same tasks: their training curves cannot be compared."
    get = records[0].settings.get
    sizes = [f"{_shape(records[0], split).split(' with ')[0]} tasks" for split in ("train", "test")]
    steps = [get("algorithm.inner_steps"), get("evaluation.inner_steps") or get("algorithm.inner_steps")]
    pairs = [sizes, [_many(each, "inner step") for each in steps]]
    differences = [
        f"{trained} in training and {held_out} in validation" for trained, held_out in pairs if trained != held_out
    ]
    return f"The two curves measure different things: {'; '.join(differences)}." if differences else ""


def best_step(record: RunRecord) -> int | None:
    """Return the step whose parameters did best in validation, the earlier of equals; None without validation."""
    for name in PRIMARY:
        series = record.series.get(f"validation/{name}")
        if series is not None:
            sign, points = METRICS[name].sign, zip(*series, strict=True)
            scored = [(sign * value, -step) for step, value in points if math.isfinite(value)]
            return -max(scored)[1] if scored else None
    return None


def _many(number: Any, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
