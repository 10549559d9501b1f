"""Say the results of a search in sentences and formatted numbers."""

import math
from collections import Counter
from collections.abc import Iterable

from metatrain.metrics import METRICS, Metric
from metatrain.report.metadata import moment
from metatrain.report.text import count, cut, format_interval
from metatrain.yaml_config import dump_inline
from tune.history.trials import Trial
from tune.report.collect import SearchRecord
from tune.report.importance import LEAST, Importances
from tune.space.distributions import Categorical, Value
from tune.space.search_space import Parameter

METHODS = {
    "bohb": "BOHB",
    "asha": "asynchronous successive halving",
    "random": "random search",
    "tpe": "TPE",
    "pbt": "population-based training",
    "evolution": "regularised evolution",
}
COSTS = {
    "parameters": "parameters",
    "operations": "operations to adapt and predict",
    "adaptation_seconds": "seconds to adapt",
}
EDGE = 0.04
"""So near the end of its domain, as a share of it, a value lies at the edge."""
LONG = 36


def describe_metric(metric: str) -> tuple[str, float, str]:
    """Return the name of a metric, what to multiply its values by, and the unit."""
    split, _, key = metric.rpartition("/")
    known = METRICS.get(key, Metric(key, key, higher_is_better=False))
    return f"{split} {known.title}".strip(), known.scale, known.unit


def metric_label(record: SearchRecord) -> str:
    """Return the label of the values: Validation accuracy (%)."""
    name, _, unit = describe_metric(record.metric)
    return f"{_capital(name)}{f' ({unit})' if unit else ''}"


def unit(record: SearchRecord) -> str:
    """Return the unit of the values: %, or nothing."""
    return describe_metric(record.metric)[2]


def scale_values(record: SearchRecord, values: Iterable[float]) -> list[float]:
    """Multiply values as they are shown: accuracies become percentages."""
    scale = describe_metric(record.metric)[1]
    return [scale * value for value in values]


def value(record: SearchRecord, raw: float) -> str:
    """Format a value: 93.40 %, or 0.2591."""
    _, scale, unit = describe_metric(record.metric)
    return format_interval(scale * raw, math.nan, unit)


def setting(found: Value) -> str:
    """Format a value of a parameter in a few characters: 0.00312, conv4, true."""
    if isinstance(found, float):
        return f"{found:.3g}"
    if isinstance(found, dict) and found.keys() == {"name"}:
        found = str(found["name"])
    return cut(found if isinstance(found, str) else dump_inline(found), LONG)


def cost(found: float) -> str:
    """Format a cost: 112 709, or 0.0231; a dash where it is not known."""
    if not math.isfinite(found):
        return "–"
    return count(int(found)) if found == int(found) else f"{found:.4g}"


def steps(number: int) -> str:
    """Format a count of steps: 1 step, 60 000 steps."""
    return f"{count(number)} {'step' if number == 1 else 'steps'}"


def trials(number: int) -> str:
    """Format a count of trials: 1 trial, 40 trials."""
    return f"{count(number)} {'trial' if number == 1 else 'trials'}"


def format_duration(seconds: float) -> str:
    """Format a duration: 48 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def status(record: SearchRecord) -> str:
    """Return whether it runs, and how far it has come."""
    begun = len(record.history.trials)
    wanted = record.settings.get("search.trials")
    of = f" of {count(wanted)}" if isinstance(wanted, int) and wanted > begun else ""
    so_far = f"{count(begun)}{of} {'trial' if begun == 1 else 'trials'} begun"
    return f"running ({record.owner}): {so_far}" if record.owner else so_far


def headline(record: SearchRecord) -> str:
    """Return how far the search has come, when it was created and its id, in one line."""
    return f"{status(record)} · created {moment(record.created)} · search {record.search_id}"


def summary(record: SearchRecord) -> list[str]:
    """Return what was searched and what was found: a paragraph, sentence by sentence."""
    name, _, _ = describe_metric(record.metric)
    many = len(record.space.parameters)
    method = METHODS.get(record.method, record.method or "a search")
    what = f"{many} {'parameter' if many == 1 else 'parameters'}"
    direction = "highest" if record.history.mode == "max" else "lowest"
    if not record.history.trials:
        return [f"{_capital(method)} is to look through {what} for the {direction} {name}: no trial has begun yet."]
    asked = f"{_capital(method)} looked through {what} for the {direction} {name}"
    took = "" if math.isnan(record.spent) else f" in {format_duration(record.spent)}"
    return [f"{asked}, and computed {steps(record.history.steps)}{took}.", _found(record), _counted(record)]


def _found(record: SearchRecord) -> str:
    best = record.history.best()
    if best is None:
        return "No trial has a result yet: there is no best configuration to report."
    budget, raw = best.results[-1]
    still = ", and is still running" if best.status == "running" else ""
    return f"The best is trial {best.number}: {value(record, raw)} after {steps(budget)}{still}."


def _counted(record: SearchRecord) -> str:
    """Count trials by their ends: of 40 trials 12 were completed, 25 stopped early and 3 failed."""
    counts: Counter[str] = Counter("failed" if each.has_failed else each.status for each in record.history.trials)
    copied = sum(each.parent is not None for each in record.history.trials)
    ends = {"completed": "had the whole budget", "stopped": "were stopped early", "failed": "failed"}
    ends["running"] = "are running" if record.owner else "are unfinished"
    found = [(counts[key], end) for key, end in ends.items() if counts[key]]
    parts = [f"{count(n)} {end.replace('were', 'was').replace('are', 'is') if n == 1 else end}" for n, end in found]
    began = "began as a copy of another" if copied == 1 else "began as copies of others"
    also = f" {_capital(trials(copied))} {began}." if copied else ""
    return f"Of {trials(sum(counts.values()))} {join_words(parts)}.{also}"


def join_words(parts: list[str]) -> str:
    """Join words: a, b and c."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def failures(record: SearchRecord) -> list[tuple[str, int, int]]:
    """Return why trials failed: (reason, how many, the last of them), the most frequent first."""
    broken = [each for each in record.history.trials if each.has_failed]
    counts = Counter(_reason(each) for each in broken)
    last = {_reason(each): each.number for each in broken}
    return [(reason, many, last[reason]) for reason, many in counts.most_common()]


def _reason(trial: Trial) -> str:
    return f"the value became {trial.reason}" if trial.status == "nan" else trial.reason or "no reason is known"


def describe_end(trial: Trial) -> str:
    """Return from where a copy began, and how a trial ended, or that it did not."""
    reason = f": {trial.reason}" if trial.reason else ""
    begun = f"begun from trial {trial.parent} at {steps(trial.start)}; " if trial.parent is not None else ""
    name = "not finite" if trial.status == "nan" else trial.status
    return f"{begun}{name}{reason}"


def edges(record: SearchRecord) -> list[str]:
    """Return parameters whose best value lies at an end of what was searched: there may be better ones beyond."""
    best = record.history.best()
    found = []
    for parameter in record.space.parameters if best else ():
        distribution = parameter.distribution
        here = None if best is None else best.configuration.get(parameter.name)
        if here is None or isinstance(distribution, Categorical) or not distribution.contains(here):
            continue
        at = distribution.quantile(here)
        if min(at, 1 - at) < EDGE:
            end = "lower" if at < 0.5 else "upper"
            found.append(f"{parameter.name} = {setting(here)} lies at the {end} end of {distribution}")
    return found


def importance(found: Importances | None) -> str:
    """Explain what the table of importances means, and on how much it rests."""
    if found is None:
        return f"Too few trials to say: it takes {LEAST} different results at one budget."
    clear = [one.name for one in found.parameters if one.clear]
    rests = (
        f"It rests on the {found.observations} values at {steps(found.budget)}, of which the best {found.best} are set "
        "against all."
    )
    stands = f"{join_words(clear)} {'stands' if len(clear) == 1 else 'stand'}" if clear else "No parameter stands"
    return f"{rests} {stands} out from what chance alone would give."


def distribution(parameter: Parameter) -> str:
    """Return a parameter's distribution as it was written, and on what it depends."""
    when = [f"{name} is {' or '.join(setting(each) for each in values)}" for name, values in parameter.when]
    return f"{parameter.distribution}{', where ' + ' and '.join(when) if when else ''}"
