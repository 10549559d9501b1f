"""Compare the journals of seeded searches, one for each method without a numerical model, with recorded digests.

They were recorded before modules and classes were renamed: names and layout of a journal are a format. TPE and BOHB are
absent, because Optuna's model sums by whatever vector instructions a processor has.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.search_folders import SPACE, accuracy, parameters
from tune.schedulers.asha import ASHA, FullBudget, Scheduler
from tune.schedulers.pbt import PBT
from tune.searchers import Searcher
from tune.searchers.bohb import BOHB
from tune.searchers.evolution import Evolution
from tune.searchers.random_search import RandomSearch
from tune.space.search_space import read_space
from tune.study import Study, StudySpec

GOLDEN = json.loads((Path(__file__).parent / "golden" / "journals.json").read_text())
FIRST = {"algorithm.inner_lr": 0.1, "outer.lr": 0.001, "algorithm.inner_steps": 5, "model": {"name": "resnet12"}}
CASES: dict[str, tuple[Searcher, Scheduler, dict[str, Any]]] = {
    "random": (RandomSearch(), FullBudget(900), {}),
    "asha": (RandomSearch(), ASHA(100, 900), {}),
    "evolution": (Evolution(population=10, tournament=4), FullBudget(900), {}),
    "pbt": (RandomSearch(), PBT(("outer.lr", "algorithm.inner_lr"), interval=100, max_budget=800, members=6), {}),
    "asha, two objectives": (RandomSearch(), ASHA(100, 900), {"objectives": ("parameters",)}),
    "asha, initial trials": (RandomSearch(), ASHA(100, 900), {"initial_trials": (FIRST,)}),
    "bohb, all at random": (BOHB(random=1.0), ASHA(100, 900), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_seeded_search_writes_the_recorded_journal(name: str, tmp_path: Path) -> None:
    searcher, scheduler, others = CASES[name]
    trials = None if isinstance(scheduler, PBT) else 40
    spec = StudySpec(read_space(SPACE), searcher, scheduler, "validation/accuracy", "max", 3, trials, **others)
    with Study(spec, tmp_path / "journal.jsonl") as study:
        for _ in range(scheduler.members if isinstance(scheduler, PBT) else 1):
            study.next_trial()
        while study.running or study.next_trial() is not None:
            # In a population the member that is furthest behind comes first.
            trial = min(study.running, key=lambda one: (one.budget, one.number))
            budget = next(rung for rung in scheduler.budgets(trial.number) if rung > trial.budget)
            if trial.number % 11 == 7:
                study.fail(trial.number, "out of memory")
            elif trial.number == 5 and budget > 100:
                study.report(trial.number, budget, float("nan"))
            else:
                study.report(trial.number, budget, accuracy(trial.configuration, budget), parameters(trial))
    digest = hashlib.sha256((tmp_path / "journal.jsonl").read_bytes()).hexdigest()
    assert digest == GOLDEN[name]
