"""Measure a search's decisions as its trials grow: BOHB under ASHA, whose trials are a cheap function.

The study is the project's own, journal included, which is on disk before each decision: a journal of 1,000 trials is
what `metatrain report` and `status` then read.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.commands import measure_command, private_mib
from metatrain import runs
from tune.config.search_config import load_search_config
from tune.history.trials import Trial
from tune.monitor import Clock
from tune.search_dir import JOURNAL, create_search
from tune.study import Study

CONFIG = Path(__file__).parents[1] / "configs" / "search-sinusoid-lr.yaml"
COLUMNS = [
    *("finished trials", "suggest, ms (median)", "result, ms (median)", "a turn of the monitor, ms", "driver, MiB"),
    *("journal, MiB", "reopen, s"),
]
COMMAND_COLUMNS = ["command", "trials of the search", "s", "CPU s", "peak MiB"]
_WINDOW = 50
"""Trials before a number, over which times are medians."""


def loss(configuration: Mapping[str, Any], budget: int) -> float:
    """Return a loss with its optimum within the space, lower with a larger budget."""
    best = {"algorithm.inner_lr": 0.01, "outer.lr": 1e-3}
    far = sum(math.log10(configuration[key] / value) ** 2 for key, value in best.items())
    return 0.5 + far - 0.02 * configuration["algorithm.inner_steps"] + 20 / (budget + 20)


def measure(folder: Path, trials: int) -> tuple[list[list[Any]], list[list[Any]]]:
    """Return rows of the decisions at 10, 100, … trials, and of the commands that read the whole search."""
    config = load_search_config(str(CONFIG), [f"search.trials={trials}", f"runs.root={folder / 'runs'}"])
    home = create_search(config, {})
    rows = _search(home, config.study_spec(), trials)
    commands = {"status SEARCH": ["status", home.where], "report SEARCH": ["report", home.where]}
    read = []
    for name, words in commands.items():
        found = measure_command(words, folder)
        read.append([name, trials, round(found.seconds, 2), round(found.cpu, 2), round(found.mib)])
        print(read[-1], flush=True)
    return rows, read


def _search(home: runs.Run, spec: Any, trials: int) -> list[list[Any]]:
    rows: list[list[Any]] = []
    suggested: list[float] = []
    decided: list[float] = []
    turns: list[float] = []
    journal, clock = home.path / JOURNAL, Clock(home.path)
    marks = {10**power for power in range(1, 9) if 10**power < trials} | {trials}
    with Study(spec, journal) as study:
        while (trial := _timed(suggested, study.next_trial)) is not None:
            _run_trial(study, trial, decided)
            _timed(turns, clock.note)
            done = len(study.history.trials)
            if done in marks:
                times = (1000 * median(each[-_WINDOW:]) for each in (suggested, decided, turns))
                row = [done, *(round(each, 2) for each in times), round(private_mib(), 1)]
                row.append(round(journal.stat().st_size / 2**20, 3))
                rows.append([*row, round(_reopen(home, spec), 2)])
                print(rows[-1], flush=True)
    return rows


def _run_trial(study: Study, trial: Trial, decided: list[float]) -> None:
    """Report the results of a trial until it is stopped or complete."""
    for budget in study.budgets(trial.number):
        value = loss(trial.configuration, budget)
        if _timed(decided, lambda b=budget, v=value: study.report(trial.number, b, v)) == "stop":
            return


def _reopen(home: runs.Run, spec: Any) -> float:
    """Return the seconds that a resume takes to replay a copy of the journal."""
    copy = home.path / "replayed.jsonl"
    copy.write_bytes((home.path / JOURNAL).read_bytes())
    began = time.perf_counter()
    with Study(spec, copy):
        seconds = time.perf_counter() - began
    copy.unlink()
    return seconds


def _timed(seconds: list[float], call: Any) -> Any:
    began = time.perf_counter()
    found = call()
    seconds.append(time.perf_counter() - began)
    return found
