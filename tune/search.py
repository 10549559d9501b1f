"""The search: suggests trials, hears of results, decides who goes on, and can be killed at any instant.

    with Search(plan, folder / "journal.jsonl") as search:
        while (trial := search.next_trial()) is not None:
            for budget, value in train(trial):
                if search.report(trial.number, budget, value) == "stop":
                    break

After a restart the same call goes on: `running` holds the trials to be taken up again from their checkpoints.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from metatrain.checks import positive, require
from tune.history import History, Mode, Trial
from tune.journal import Event, Journal, after, replayed
from tune.rungs import Decision, Schedule
from tune.searchers import Searcher
from tune.space import Space


@dataclass(frozen=True)
class Plan:
    """What is searched, how, and for how long.

    trials, steps: at most so many are begun; none, while so many steps are computed. failures: so many trials that
    fail one after the other end the search, for the next would too.
    """

    space: Space
    searcher: Searcher
    schedule: Schedule
    metric: str
    mode: Mode
    seed: int = 0
    trials: int | None = None
    steps: int | None = None
    failures: int = 5

    def __post_init__(self) -> None:
        positive("search", trials=self.trials, steps=self.steps, failures=self.failures)
        require(self.mode in ("min", "max"), f"search.mode: {self.mode!r}: set min or max")
        endless = "search: has no end: set search.trials, or search.steps"
        require(self.trials is not None or self.steps is not None, endless)

    def header(self) -> dict[str, Any]:
        """What makes it this search; how long it lasts is not part of that, and may be raised."""
        return {
            "seed": self.seed,
            "metric": self.metric,
            "mode": self.mode,
            "space": self.space.written(),
            "searcher": _told(self.searcher),
            "schedule": _told(self.schedule),
        }


class Outcome(NamedTuple):
    """Why no more trials begin, and whether that is a failure."""

    failed: bool
    reason: str


class Search:
    """A history that grows, each event in the journal first."""

    def __init__(self, plan: Plan, path: Path) -> None:
        """Begin, or go on where the journal ends. ValueError: it is another search's."""
        self.plan = plan
        self._journal = Journal(path, plan.header())
        try:
            self.history: History = replayed(plan.mode, self._journal.events, str(path))
        except BaseException:
            self._journal.close()
            raise

    def __enter__(self) -> "Search":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """The journal is whole already."""
        self._journal.close()

    @property
    def running(self) -> tuple[Trial, ...]:
        """Trials that have begun and not ended."""
        return self.history.running

    def best(self) -> Trial | None:
        """The best of those that went furthest."""
        return self.history.best()

    def outcome(self) -> Outcome | None:
        """Why no more trials begin; None while they do."""
        history, plan = self.history, self.plan
        if history.failures_in_a_row >= plan.failures:
            broken = [trial for trial in history.trials if trial.status in ("failed", "nan")]
            last = f"trial {broken[-1].number} last: {broken[-1].reason}"
            return Outcome(True, f"{history.failures_in_a_row} trials failed one after the other, {last}")
        if plan.trials is not None and len(history.trials) >= plan.trials:
            return Outcome(False, f"all {plan.trials} trials have begun")
        if plan.steps is not None and history.steps >= plan.steps:
            return Outcome(False, f"{history.steps} of {plan.steps} steps are computed")
        return None

    def next_trial(self) -> Trial | None:
        """Begin one more; None: see `outcome`."""
        if self.outcome() is not None:
            return None
        number = len(self.history.trials)
        configuration = self.plan.searcher.suggest(self.plan.space, self.history, number, self.plan.seed)
        return self._begin(Trial(number, configuration))

    def copy(self, number: int, parent: int, start: int, configuration: dict[str, Any]) -> Trial:
        """A trial's place in a population is taken by one that begins from another's checkpoint.

        One line, so that no crash leaves one of them without the other.
        """
        self.history.trial(number)
        self.history.trial(parent)
        return self._begin(Trial(len(self.history.trials), configuration, parent, start), instead=number)

    def report(self, number: int, budget: int, value: float) -> Decision:
        """A result after `budget` steps; whether the trial goes on. Saying it again changes nothing, nor does saying it
        too late. Budgets between the rungs are not kept. ValueError: a rung was passed in silence.
        """
        trial = self.history.trial(number)
        if not self.history.takes(number, budget):
            return _standing(trial)
        if not math.isfinite(value):
            self._do({"event": "ended", "trial": number, "status": "nan", "reason": f"{value} at step {budget}"})
            return "stop"
        rungs = self.plan.schedule.budgets(number)
        due = next((rung for rung in rungs if rung > trial.budget), math.inf)
        if budget < due:
            return "continue"
        passed = f"trial {number}: {budget} steps are past the rung at {due}: report {self.plan.metric} there"
        require(budget == due, passed)
        seen = self.history.reported(number, budget, value)
        status = "completed" if budget == rungs[-1] else "running"
        if status == "running" and self.plan.schedule.decide(seen, number) == "stop":
            status = "stopped"
        self._do({"event": "result", "trial": number, "budget": budget, "value": float(value), "status": status})
        return _standing(self.history.trial(number))

    def failed(self, number: int, reason: str) -> None:
        """A trial broke, and will not be tried again."""
        if self.history.trial(number).status == "running":
            self._do({"event": "ended", "trial": number, "status": "failed", "reason": reason})

    def _begin(self, trial: Trial, instead: int | None = None) -> Trial:
        began = {"event": "began", "trial": trial.number, "configuration": dict(trial.configuration)}
        began |= {"parent": trial.parent, "start": trial.start}
        self._do(began if instead is None else {**began, "instead": instead})
        return self.history.trial(trial.number)

    def _do(self, event: Event) -> None:
        """What cannot be is found before it is written; what is not written is not done."""
        grown = after(self.history, event)
        self._journal.append(event)
        self.history = grown


def _standing(trial: Trial) -> Decision:
    return "continue" if trial.status == "running" else "stop"


def _told(settings: Any) -> dict[str, Any]:
    return {"name": type(settings).__name__.lower(), **dataclasses.asdict(settings)}
