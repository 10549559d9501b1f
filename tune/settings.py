"""Define the settings under `search:` in a search's YAML file, beside its space and its configuration."""

from dataclasses import dataclass
from typing import Any, Literal

from metatrain import metrics
from metatrain.validation import require, require_not_negative, require_positive
from tune.history.trials import Mode

METRICS: dict[str, Mode] = {
    f"validation/{name}": "max" if metric.higher_is_better else "min" for name, metric in metrics.METRICS.items()
}
"""The metrics that validations record, and which way is better."""
Cost = Literal["parameters", "operations", "adaptation_seconds"]
"""What a trial costs, minimised: numbers in the model; multiplications and additions of adapting to one test task and
predicting its queries; the seconds of that.
"""


@dataclass(frozen=True)
class NamedMethod:
    """A search method by name, with the settings of its two parts: (searcher, schedule)."""

    name: str
    settings: Any


@dataclass(frozen=True)
class SearchSettings:
    """What a search maximises or minimises, how, for how long, and with which resources.

    trials, minutes: the most trials that begin; the time limit, all sessions together. at_once: trials that run at the
    same time; 0 for as many as the cluster has room for. cpus: of each trial's own process, beside its workers.
    failures: so many trials that fail in a row end the search. retries: how often a trial is restarted after its node
    or process was lost. objectives: costs minimised beside the metric. first: configurations to begin with, each over
    the base's own values. warm_start: MLflow experiments to learn from. probe: a run whose network embeds tasks, by
    which their similarity to those of earlier searches with the same probe is measured.
    """

    method: NamedMethod
    metric: str = "validation/accuracy"
    trials: int | None = None
    minutes: float | None = None
    at_once: int = 0
    seed: int = 0
    cpus: float = 1.0
    failures: int = 5
    retries: int = 3
    objectives: tuple[Cost, ...] = ()
    first: tuple[dict[str, Any], ...] = ()
    warm_start: tuple[str, ...] = ()
    probe: str | None = None

    def __post_init__(self) -> None:
        require_positive("search", trials=self.trials, minutes=self.minutes, failures=self.failures, cpus=self.cpus)
        require_not_negative("search", at_once=self.at_once, seed=self.seed, retries=self.retries)
        known = ", ".join(METRICS)
        require(self.metric in METRICS, f"search.metric: no run reports '{self.metric}': choose among {known}")
        endless = "search: has no end: set search.trials, search.minutes, or both"
        require(self.trials is not None or self.minutes is not None, endless)
        require(len(set(self.objectives)) == len(self.objectives), "search.objectives: names one twice: name each once")
        require(all(name.strip() for name in self.warm_start), "search.warm_start: an empty name: name experiments")

    @property
    def mode(self) -> Mode:
        """Return whether the metric is minimised or maximised."""
        return METRICS[self.metric]
