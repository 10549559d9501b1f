"""Run one study: propose trials, record their results in the journal, decide which trials continue.

    with Study(spec, folder / "journal.jsonl") as study:
        while (trial := study.next_trial()) is not None:
            for budget, value in train(trial):
                if study.report(trial.number, budget, value) == "stop":
                    break

A study can be killed at any instant. After a restart the same code resumes it: `running` holds the trials to resume
from their checkpoints.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

from metatrain.validation import require, require_positive
from tune.history.journal import Event, Journal, apply_event, replay
from tune.history.trials import History, Mode, Status, Trial
from tune.schedulers.asha import Decision, Scheduler
from tune.schedulers.pbt import PBT
from tune.searchers import Searcher
from tune.space.search_space import Configuration, Space
from tune.transfer.prior_studies import PriorStudies

_JOURNAL_NAMES = {
    "RandomSearch": "random",
    "WarmStart": "warm",
    "ASHA": "halving",
    "FullBudget": "full",
    "PBT": "population",
}
"""Names in journal headers of the searchers and schedulers whose classes have others: part of the file format."""


@dataclass(frozen=True)
class StudySpec:
    """What is searched, how, and for how long.

    trials: no trial begins once so many have begun; None for no such limit, as in a search that ends by time.
    failures: so many trials that fail in a row end the study, because the next would fail too.

    In population-based training `trials` counts copies as well as members; once so many have begun, members train on
    without copying. Without `trials` the study ends when its members have used their budgets.

    objectives: costs to minimise beside the metric, reported with results. initial_trials: configurations tried before
    the searcher's own, in their order.
    """

    space: Space
    searcher: Searcher
    scheduler: Scheduler
    metric: str
    mode: Mode
    seed: int = 0
    trials: int | None = None
    failures: int = 5
    objectives: tuple[str, ...] = ()
    initial_trials: tuple[Configuration, ...] = ()

    def __post_init__(self) -> None:
        require_positive("search", trials=self.trials, failures=self.failures)
        require(self.mode in ("min", "max"), f"search.mode: {self.mode!r}: set min or max")
        for configuration in self.initial_trials:
            require(self.space.contains(configuration), f"search.first: {configuration} is not of the space: fix it")
        begun = self.scheduler.members if isinstance(self.scheduler, PBT) else self.trials
        many = f"search.first: has {len(self.initial_trials)} configurations for {begun} trials: remove some"
        require(begun is None or len(self.initial_trials) <= begun, many)
        if isinstance(self.scheduler, PBT):
            self.scheduler.check_space(self.space)
            members = self.scheduler.members
            few = f"search.trials: {self.trials} leave a population of {members} none to copy with: set more than that"
            require(self.trials is None or self.trials > members, few)

    def journal_header(self) -> dict[str, Any]:
        """Return what identifies this study in its journal; its length is no part of that and may be raised."""
        header: dict[str, Any] = {
            "seed": self.seed,
            "metric": self.metric,
            "mode": self.mode,
            "space": self.space.to_plain(),
            "searcher": _describe(self.searcher),
            "schedule": _describe(self.scheduler),
        }
        # Omitted where there are none, as in journals of versions without them.
        header |= {"objectives": list(self.objectives)} if self.objectives else {}
        return header | ({"first": list(self.initial_trials)} if self.initial_trials else {})


class StopReason(NamedTuple):
    """Why no more trials begin, and whether that is a failure."""

    failed: bool
    reason: str


class Study:
    """Grow a history of trials, writing each event to the journal first."""

    def __init__(self, spec: StudySpec, path: Path) -> None:
        """Begin a study, or resume it where its journal ends. ValueError: the journal is another study's."""
        self.spec = spec
        self._journal = Journal(path, spec.journal_header())
        try:
            self.history: History = replay(spec.mode, self._journal.events, str(path), spec.objectives)
        except BaseException:
            self._journal.close()
            raise

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._journal.close()

    @property
    def running(self) -> tuple[Trial, ...]:
        """Return the trials that have begun and not ended."""
        return self.history.running

    def stop_reason(self) -> StopReason | None:
        """Return why no more trials begin; None while they do or may, as when a member that runs may yet be replaced
        by a copy of another.
        """
        history, spec = self.history, self.spec
        if history.consecutive_failures >= spec.failures:
            last = [trial for trial in history.trials if trial.has_failed][-1]
            reason = f"trial {last.number} last: {last.reason}"
            return StopReason(True, f"{history.consecutive_failures} trials failed one after the other, {reason}")
        if self._all_begun(history):
            return StopReason(False, f"all {spec.trials} trials have begun")
        if self._all_started() and not history.running:
            return StopReason(False, f"all {sum(trial.parent is None for trial in history.trials)} members have ended")
        return None

    def next_trial(self) -> Trial | None:
        """Begin one more trial. None: see `stop_reason`; if that is None, all members of a population have begun."""
        if self.stop_reason() is not None or self._all_started():
            return None
        spec, number = self.spec, len(self.history.trials)
        given = len(spec.initial_trials)
        if number < given:
            configuration = dict(spec.initial_trials[number])
        else:
            configuration = spec.searcher.suggest(spec.space, self.history, number - given, spec.seed)
        self._apply({"event": "began", "trial": number, "configuration": configuration, "parent": None, "start": 0})
        return self.history.trial(number)

    def budgets(self, number: int) -> tuple[int, ...]:
        """Return the rungs of a trial above the step that it began from, in steps, rising."""
        start = self.history.trial(number).start
        return tuple(rung for rung in self.spec.scheduler.budgets(number) if rung > start)

    def report(
        self, number: int, budget: int, value: float, costs: Mapping[str, float] = MappingProxyType({})
    ) -> Decision:
        """Record a result after `budget` steps, those of a copy's ancestors included; return whether the trial goes on.

        A trial that copies another stops, and its copy is among `running`. A result that is repeated, or comes after
        the trial's end, changes nothing; budgets between rungs are not recorded. ValueError: a rung was skipped.

        costs: {objective: number}. Other names than the objectives and numbers that are not finite are dropped; an
        unknown cost counts as the worst.
        """
        trial = self.history.trial(number)
        if not self.history.accepts(number, budget):
            return _decision(trial)
        if not math.isfinite(value):
            self._apply({"event": "ended", "trial": number, "status": "nan", "reason": f"{value} at step {budget}"})
            return "stop"
        due = next((rung for rung in self.budgets(number) if rung > trial.budget), math.inf)
        if budget < due:
            return "continue"
        skipped = f"trial {number}: {budget} steps are past the rung at {due}: report {self.spec.metric} there"
        require(budget == due, skipped)
        result: Event = {"event": "result", "trial": number, "budget": budget, "value": float(value)}
        known = {name: float(costs[name]) for name in self.spec.objectives if math.isfinite(costs.get(name, math.nan))}
        result |= {"costs": known} if known else {}
        self._apply(result | self._decide(self.history.with_result(number, budget, value, known), number))
        return _decision(self.history.trial(number))

    def fail(self, number: int, reason: str, status: Status = "failed") -> None:
        """End a trial as failed, with a status of `FAILED_STATUSES`; it is not tried again."""
        if self.history.trial(number).status == "running":
            self._apply({"event": "ended", "trial": number, "status": status, "reason": reason})

    def _decide(self, history: History, number: int) -> Event:
        """Return the part of a result's event that says what follows from it."""
        spec, scheduler = self.spec, self.spec.scheduler
        if history.trial(number).budget == scheduler.budgets(number)[-1]:
            return {"status": "completed"}
        if scheduler.decide(history, number) == "stop":
            return {"status": "stopped"}
        if isinstance(scheduler, PBT) and not self._all_begun(history):
            copy = scheduler.choose_copy(spec.space, history, number, spec.seed)
            if copy is not None:
                return {"status": "stopped", "copy": {"trial": len(history.trials), **copy._asdict()}}
        return {"status": "running"}

    def _all_begun(self, history: History) -> bool:
        """Return whether as many trials have begun as the study may have."""
        return self.spec.trials is not None and len(history.trials) >= self.spec.trials

    def _all_started(self) -> bool:
        return isinstance(self.spec.scheduler, PBT) and self.spec.scheduler.all_started(self.history)

    def _apply(self, event: Event) -> None:
        """Check an event, write it to the journal, then let it take effect."""
        grown = apply_event(self.history, event)
        self._journal.append(event)
        self.history = grown


def _decision(trial: Trial) -> Decision:
    return "continue" if trial.status == "running" else "stop"


def _describe(settings: Any) -> dict[str, Any]:
    """Return the name and the fields of a searcher or scheduler, as journal headers have them."""
    name = type(settings).__name__
    values = {
        field.metadata.get("journal", field.name): getattr(settings, field.name)
        for field in dataclasses.fields(settings)
    }
    return {"name": _JOURNAL_NAMES.get(name, name.lower())} | {key: _plain_field(one) for key, one in values.items()}


def _plain_field(value: Any) -> Any:
    """Describe a searcher within a searcher; give prior studies, which may be long, by their digest."""
    if isinstance(value, PriorStudies):
        return value.digest()
    return _describe(value) if dataclasses.is_dataclass(value) else value
