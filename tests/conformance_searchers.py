"""What every searcher promises: a new one joins by a row in `test_search_searchers.py`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune.history.trials import History, Trial
from tune.schedulers.asha import ASHA, FullBudget, Scheduler
from tune.searchers import Searcher
from tune.space.search_space import Configuration, read_space
from tune.study import Study, StudySpec

SPACE = read_space(
    {
        "algorithm.inner_lr": "loguniform(1e-3, 1)",
        "outer.momentum": {"from": "uniform(0, 0.99)", "when": {"outer.optimizer": "sgd"}},
        "outer.optimizer": "choice(adam, sgd)",
        "algorithm.inner_steps": "int(1, 10)",
        "model": "choice({name: conv4}, {name: resnet12})",
        "model.width": {"from": "logint(16, 128)", "when": {"model": {"name": "conv4"}}},
        "model.pool": {"from": "choice(true, false, null)", "when": {"model.width": list(range(16, 64))}},
    }
)
SCHEDULE = ASHA(1, 9)


@dataclass(frozen=True)
class Row:
    name: str
    searcher: Searcher
    learns: bool = True
    """Whether it uses results, after some twenty of them."""


def loss(configuration: Configuration, budget: int) -> float:
    """Least at inner_lr 0.03, many inner steps and a wide conv4; nearer the truth with a larger budget."""
    rate = (math.log10(configuration["algorithm.inner_lr"]) - math.log10(0.03)) ** 2
    width = configuration.get("model.width", 8)
    return rate + 0.3 * abs(math.log2(width) - 6) + 0.1 * (10 - configuration["algorithm.inner_steps"]) + 1 / budget


def told(searcher: Searcher, seed: int = 0, trials: int = 30, scheduler: Scheduler = SCHEDULE) -> History:
    """A search of some trials, one at a time, of which some fail, some give nan and some are stopped early."""
    history = History()
    for number in range(trials):
        history = history.with_trial(Trial(number, searcher.suggest(SPACE, history, number, seed)))
        history = run_trial(history, number, scheduler)
    return history


def run_trial(history: History, number: int, scheduler: Scheduler = SCHEDULE, nan: bool = True) -> History:
    """All of a trial's life."""
    configuration = dict(history.trial(number).configuration)
    if nan and number % 7 == 3:
        return history.with_end(number, "failed", "out of memory")
    for budget in scheduler.budgets(number):
        value = math.nan if nan and number % 11 == 5 and (budget > 1 or number % 2) else loss(configuration, budget)
        history = history.with_result(number, budget, value)
        if history.trial(number).status == "running" and scheduler.decide(history, number) == "stop":
            return history.with_end(number, "stopped")
    return history.with_end(number, "completed")


def check_within(row: Row) -> None:
    """Bounds, categories, conditionals, integer and log domains: every suggestion is of the space."""
    for seed in range(3):
        for trial in told(row.searcher, seed).trials:
            assert SPACE.contains(trial.configuration), trial
            kinds = {name: type(value) for name, value in trial.configuration.items()}
            assert kinds["algorithm.inner_lr"] is float
            assert kinds["algorithm.inner_steps"] is int
            assert ("outer.momentum" in kinds) == (trial.configuration["outer.optimizer"] == "sgd")
            assert ("model.width" in kinds) == (trial.configuration["model"] == {"name": "conv4"})
            assert ("model.pool" in kinds) == (trial.configuration.get("model.width", 200) < 64)


def check_narrow(row: Row) -> None:
    """The smallest domains there are, whose ends are all there is, and the widest."""
    space = read_space(
        {"a": "int(3, 4)", "b": "logint(1, 2)", "c": "choice(0, false)", "d": "uniform(-1e300, 1e300)"}
        | {"e": "loguniform(1e-300, 1e300)", "f": "uniform(1, 1.0000000000000002)", "g": "int(-9007199254740991, 0)"}
    )
    history = History()
    for number in range(30):
        configuration = row.searcher.suggest(space, history, number, 0)
        assert space.contains(configuration), configuration
        history = history.with_trial(Trial(number, configuration)).with_result(
            number, 9, configuration["a"] - number % 3
        )
        history = history.with_end(number, "completed")
    for name in "abc":
        assert len({str(trial.configuration[name]) for trial in history.trials}) == 2, name


def check_pure(row: Row) -> None:
    """The same of the same, whoever asks, as often as he likes, whatever was asked in between."""
    history = told(row.searcher, trials=25)
    first = row.searcher.suggest(SPACE, history, 25, 0)
    told(row.searcher, seed=5, trials=12)
    again = type(row.searcher)(**vars(row.searcher))
    assert again.suggest(SPACE, history, 25, 0) == first
    configurations = [trial.configuration for trial in history.trials]
    for number in range(25):
        early = History(history.mode, tuple(history.trials[:number]), _arrivals(history, number))
        assert row.searcher.suggest(SPACE, early, number, 0) == configurations[number]


def _arrivals(history: History, number: int) -> tuple[tuple[int, int], ...]:
    return tuple(arrival for arrival in history.result_order if arrival[0] < number)


def check_seeds(row: Row) -> None:
    """Another seed, other suggestions, before and after there is something to learn from."""
    history = told(row.searcher, trials=25)
    for number, known in ((0, History()), (25, history)):
        found = [row.searcher.suggest(SPACE, known, number, seed) for seed in range(20)]
        # Evolution changes one parameter, which may be a category: then two seeds may well agree.
        assert sum(found[i] not in found[:i] for i in range(20)) >= 15


def check_parallel(row: Row) -> None:
    """Suggested side by side, before any of them has a result, they differ."""
    history = told(row.searcher, trials=25)
    found: list[Configuration] = []
    for number in range(25, 33):
        found.append(row.searcher.suggest(SPACE, history, number, 0))
        history = history.with_trial(Trial(number, found[-1]))
    assert sum(found[i] not in found[:i] for i in range(8)) >= 7


def check_failures_only(row: Row) -> None:
    """Where all fail, it goes on suggesting."""
    history = History()
    for number in range(25):
        history = history.with_trial(Trial(number, row.searcher.suggest(SPACE, history, number, 0)))
        status = "failed" if number % 2 else "nan"
        history = history.with_end(number, status)
    assert SPACE.contains(row.searcher.suggest(SPACE, history, 25, 0))


def check_failures_repel(row: Row) -> None:
    """Where resnet12 always breaks, conv4 is suggested more often than by chance."""
    history = History()
    for number in range(60):
        configuration = row.searcher.suggest(SPACE, history, number, 1)
        history = history.with_trial(Trial(number, configuration))
        broken = configuration["model"] == {"name": "resnet12"}
        history = history.with_end(number, "failed") if broken else run_trial(history, number, nan=False)
    safe = sum(trial.configuration["model"] == {"name": "conv4"} for trial in history.trials[20:])
    assert safe >= 30 if row.learns else 10 <= safe <= 30


def check_learns(row: Row) -> None:
    """Late suggestions are truly better than early ones, whether the metric is to be small or large."""
    histories = [told(row.searcher, seed, 60, scheduler=FullBudget(9)) for seed in range(3)]
    early, late = [
        sorted(loss(dict(trial.configuration), 9) for history in histories for trial in history.trials[part])
        for part in (slice(0, 20), slice(40, 60))
    ]
    assert (late[30] < 0.75 * early[30]) == row.learns


def check_mode(row: Row) -> None:
    """To maximise the negative is to minimise."""
    least, most = History("min"), History("max")
    for number in range(30):
        configurations = [row.searcher.suggest(SPACE, history, number, 0) for history in (least, most)]
        assert configurations[0] == configurations[1]
        value = loss(configurations[0], 9)
        least = (
            least.with_trial(Trial(number, configurations[0]))
            .with_result(number, 9, value)
            .with_end(number, "completed")
        )
        most = (
            most.with_trial(Trial(number, configurations[0]))
            .with_result(number, 9, -value)
            .with_end(number, "completed")
        )


def check_late_and_repeated(row: Row) -> None:
    """What is said twice, or after the end, or out of order, changes no suggestion."""
    plain, noisy = History(), History()
    for number in range(25):
        plain = plain.with_trial(Trial(number, row.searcher.suggest(SPACE, plain, number, 0)))
        noisy = noisy.with_trial(Trial(number, row.searcher.suggest(SPACE, noisy, number, 0)))
        assert noisy.trial(number) == plain.trial(number)
        for budget in (1, 3):
            plain = plain.with_result(number, budget, loss(dict(plain.trial(number).configuration), budget))
            noisy = noisy.with_result(number, budget, loss(dict(noisy.trial(number).configuration), budget))
            noisy = (
                noisy.with_result(number, budget, -100.0)
                .with_result(number, 1, -100.0)
                .with_result(number, budget, math.nan)
            )
        plain = plain.with_end(number, "stopped")
        noisy = noisy.with_end(number, "stopped").with_end(number, "failed", "late").with_result(number, 9, -100.0)
    assert noisy == plain


def searched(spec: StudySpec, path: Path) -> list[Trial]:
    """To the end of the plan, one trial at a time, from wherever its journal ends."""
    with Study(spec, path) as search:
        while True:
            trial = search.running[0] if search.running else search.next_trial()
            if trial is None:
                return list(search.history.trials)
            _run_trial(search, trial.number)


def _run_trial(search: Study, number: int) -> None:
    trial = search.history.trial(number)
    if number % 7 == 3:
        search.fail(number, "out of memory")
        return
    for budget in search.spec.scheduler.budgets(number):
        value = math.nan if number % 11 == 5 and (budget > 1 or number % 2) else loss(dict(trial.configuration), budget)
        if budget > trial.budget and search.report(number, budget, value) == "stop":
            return


def spec_of(
    searcher: Searcher, trials: int = 30, scheduler: Scheduler = SCHEDULE, seed: int = 0, **others: Any
) -> StudySpec:
    return StudySpec(SPACE, searcher, scheduler, "loss", "min", seed, trials, **others)


def check_resume(row: Row, folder: Path) -> None:
    """Killed after any line of the journal, one trial at a time: the resumed search writes the same journal."""
    spec = spec_of(row.searcher, trials=26)
    searched(spec, folder / "whole.jsonl")
    lines = (folder / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) > 40
    path = folder / "cut.jsonl"
    for count in range(len(lines)):
        # The next few lines tell; to go on to the end each time would take minutes.
        path.write_bytes(b"".join(lines[:count]))
        begun = sum(b'"began"' in line for line in lines[:count])
        searched(spec_of(row.searcher, trials=min(begun + 2, 26)), path)
        written = path.read_bytes()
        assert written == b"".join(lines)[: len(written)]
        assert len(written.splitlines()) > count or count == len(lines)
