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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

from metatrain.validation import require, require_positive
from tune.history.journal import Event, Journal, after, replayed
from tune.history.trials import History, Mode, Status, Trial
from tune.schedulers.asha import Decision, Schedule
from tune.schedulers.pbt import Population
from tune.searchers import Searcher
from tune.space.search_space import Configuration, Space
from tune.transfer.prior_studies import Experience


@dataclass(frozen=True)
class Plan:
    """What is searched, how, and for how long.

    trials, steps: at most so many are begun; none, once so many steps are computed; None where there is no such end, as
    in a search that ends by the clock. failures: so many trials that fail one after the other end the search, for the
    next would too.

    Where the schedule is a population, `trials` counts copies as it does members: once so many have begun, members
    train on as they are. Without it, or `steps`, the population ends when its members have had their budgets.

    objectives: costs, to be small, that are weighed beside the metric; they come with results. first: configurations
    that are tried before any that the searcher suggests, in their order.
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
    objectives: tuple[str, ...] = ()
    first: tuple[Configuration, ...] = ()

    def __post_init__(self) -> None:
        require_positive("search", trials=self.trials, steps=self.steps, failures=self.failures)
        require(self.mode in ("min", "max"), f"search.mode: {self.mode!r}: set min or max")
        for configuration in self.first:
            require(self.space.contains(configuration), f"search.first: {configuration} is not of the space: mend it")
        begun = self.schedule.members if isinstance(self.schedule, Population) else self.trials
        many = f"search.first: has {len(self.first)} configurations, and {begun} trials are begun: leave some out"
        require(begun is None or len(self.first) <= begun, many)
        if isinstance(self.schedule, Population):
            self.schedule.check(self.space)
            members = self.schedule.members
            few = f"search.trials: {self.trials} leave a population of {members} none to copy with: set more than that"
            require(self.trials is None or self.trials > members, few)

    def header(self) -> dict[str, Any]:
        """What makes it this search; how long it lasts is not part of that, and may be raised."""
        header: dict[str, Any] = {
            "seed": self.seed,
            "metric": self.metric,
            "mode": self.mode,
            "space": self.space.written(),
            "searcher": _told(self.searcher),
            "schedule": _told(self.schedule),
        }
        # Left out where there are none, as in journals from before there could be.
        header |= {"objectives": list(self.objectives)} if self.objectives else {}
        return header | ({"first": list(self.first)} if self.first else {})


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
            self.history: History = replayed(plan.mode, self._journal.events, str(path), plan.objectives)
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

    def front(self) -> tuple[Trial, ...]:
        """Of those that went furthest, those that none of them dominates, the best metric first."""
        return self.history.front()

    def outcome(self) -> Outcome | None:
        """Why no more trials begin; None while they do, or may: a member of a population that runs may yet be replaced
        by its copy of another.
        """
        history, plan = self.history, self.plan
        if history.failures_in_a_row >= plan.failures:
            broken = [trial for trial in history.trials if trial.broke]
            last = f"trial {broken[-1].number} last: {broken[-1].reason}"
            return Outcome(True, f"{history.failures_in_a_row} trials failed one after the other, {last}")
        enough = self._enough(history)
        if enough is not None:
            return Outcome(False, enough)
        if self._complete() and not history.running:
            return Outcome(False, f"all {sum(trial.parent is None for trial in history.trials)} members have ended")
        return None

    def next_trial(self) -> Trial | None:
        """Begin one more; None: see `outcome`, and where that is None all members of a population have begun."""
        if self.outcome() is not None or self._complete():
            return None
        plan, number = self.plan, len(self.history.trials)
        given = len(plan.first)
        if number < given:
            configuration = dict(plan.first[number])
        else:
            configuration = plan.searcher.suggest(plan.space, self.history, number - given, plan.seed)
        began = {"event": "began", "trial": number, "configuration": configuration, "parent": None, "start": 0}
        self._do(began)
        return self.history.trial(number)

    def budgets(self, number: int) -> tuple[int, ...]:
        """The rungs of a trial, those above the steps that it began from, in steps, rising."""
        start = self.history.trial(number).start
        return tuple(rung for rung in self.plan.schedule.budgets(number) if rung > start)

    def report(
        self, number: int, budget: int, value: float, costs: Mapping[str, float] = MappingProxyType({})
    ) -> Decision:
        """A result after `budget` steps, those of a copy's ancestors among them; whether the trial goes on.

        Where it copies another it does not, and its copy is among `running`. Saying a result again changes nothing, nor
        does saying it too late. Budgets between the rungs are not kept. ValueError: a rung was passed in silence.

        costs: {objective: number}. What is no objective of the plan is not kept, nor what is no finite number: what is
        not known counts as the worst.
        """
        trial = self.history.trial(number)
        if not self.history.takes(number, budget):
            return _standing(trial)
        if not math.isfinite(value):
            self._do({"event": "ended", "trial": number, "status": "nan", "reason": f"{value} at step {budget}"})
            return "stop"
        due = next((rung for rung in self.budgets(number) if rung > trial.budget), math.inf)
        if budget < due:
            return "continue"
        passed = f"trial {number}: {budget} steps are past the rung at {due}: report {self.plan.metric} there"
        require(budget == due, passed)
        result: Event = {"event": "result", "trial": number, "budget": budget, "value": float(value)}
        known = {name: float(costs[name]) for name in self.plan.objectives if math.isfinite(costs.get(name, math.nan))}
        result |= {"costs": known} if known else {}
        self._do(result | self._decided(self.history.reported(number, budget, value, known), number))
        return _standing(self.history.trial(number))

    def failed(self, number: int, reason: str, status: Status = "failed") -> None:
        """A trial broke, and will not be tried again; `status` is one of `history.BROKEN`."""
        if self.history.trial(number).status == "running":
            self._do({"event": "ended", "trial": number, "status": status, "reason": reason})

    def _decided(self, seen: History, number: int) -> Event:
        """What follows from a trial's newest result, as the journal has it."""
        plan, schedule = self.plan, self.plan.schedule
        if seen.trial(number).budget == schedule.budgets(number)[-1]:
            return {"status": "completed"}
        if schedule.decide(seen, number) == "stop":
            return {"status": "stopped"}
        if isinstance(schedule, Population) and self._enough(seen) is None:
            copy = schedule.exploit(plan.space, seen, number, plan.seed)
            if copy is not None:
                return {"status": "stopped", "copy": {"trial": len(seen.trials), **copy._asdict()}}
        return {"status": "running"}

    def _enough(self, history: History) -> str | None:
        """Which of the plan's ends is reached, in words."""
        trials, steps = self.plan.trials, self.plan.steps
        if trials is not None and len(history.trials) >= trials:
            return f"all {trials} trials have begun"
        if steps is not None and history.steps >= steps:
            return f"{history.steps} of {steps} steps are computed"
        return None

    def _complete(self) -> bool:
        return isinstance(self.plan.schedule, Population) and self.plan.schedule.complete(self.history)

    def _do(self, event: Event) -> None:
        """What cannot be is found before it is written; what is not written is not done."""
        grown = after(self.history, event)
        self._journal.append(event)
        self.history = grown


def _standing(trial: Trial) -> Decision:
    return "continue" if trial.status == "running" else "stop"


def _told(settings: Any) -> dict[str, Any]:
    """By name, and so what it holds that says what it is itself."""
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return {"name": type(settings).__name__.lower(), **{name: _field(value) for name, value in fields.items()}}


def _field(value: Any) -> Any:
    """Plain as it is; a searcher within a searcher as that is told; experience, which may be long, by its digest."""
    if isinstance(value, Experience):
        return value.digest()
    return _told(value) if dataclasses.is_dataclass(value) else value
