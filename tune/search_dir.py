"""A search's folder: what it keeps beside its journal, and where its trials are.

<root>/<search id>/
    run.json, environment.json, owner.lock    as of a run
    config.yaml          the search as it was written, resolved (`tune.config.search_config`)
    journal.jsonl        what it has done: the truth (`tune.history.journal`)
    clock.jsonl          {"event": 1, "seconds": 3.2, "time": …}: when each event of the journal was written
    experience.json      what earlier searches found, where they were asked
    tasks.json           what its tasks are like, for later searches to compare theirs with
    best.yaml            the best configuration so far, ready for `metatrain train`
    trials/0000/         each trial's own run
"""

from pathlib import Path

from metatrain.config.load import as_plain
from metatrain.runs import Run, environment, fresh_id
from metatrain.runs.locations import make_home, open_home
from metatrain.validation import require
from metatrain.yaml_config import load_yaml
from tasks.io.remote_fs import is_uri
from tune.config.search_config import SearchConfig, read_search_config
from tune.execution.trial_spec import TrialSpec
from tune.history.trials import Trial

JOURNAL, CLOCK, BEST = "journal.jsonl", "clock.jsonl", "best.yaml"
EXPERIENCE, TASKS = "experience.json", "tasks.json"
KEPT = (JOURNAL, CLOCK, BEST, EXPERIENCE, TASKS)
"""Files that MLflow's parent run has too."""


def create_search(document: SearchConfig, beside: dict[str, str]) -> Run:
    """A folder for a search, with the texts `beside` kept in it under their names."""
    settings = document.base.runs
    root = settings.root if is_uri(settings.root) else str(Path(settings.root).absolute())
    search_id = fresh_id(settings.name)
    place = f"{root.rstrip('/')}/{search_id}"
    return make_home(place, search_id, document.text(), environment(), settings.heartbeat, beside)


def open_search(place: str) -> tuple[Run, SearchConfig]:
    """A search that was begun. ValueError: there is none."""
    home = open_home(place if is_uri(place) else str(Path(place).absolute()))
    plain = load_yaml(home.config, "a search", "search and space")
    require("search" in plain, f"{place}: is a run, not a search: go on with `metatrain train --resume {place}`")
    return home, read_search_config(plain)


def trial_location(home: Run, number: int) -> str:
    """Where a trial's run is kept."""
    return f"{home.where}/trials/{number:04d}"


def trial_run_id(home: Run, number: int) -> str:
    """Its run's id, which no other run has."""
    return f"{home.run_id}-{number:04d}"


def assignment(home: Run, document: SearchConfig, trial: Trial, parent_run: str | None) -> TrialSpec:
    """What a trial's process is told; `parent_run` is MLflow's id of the search."""
    _, schedule = document.search.method.settings
    tags = {"metatrain.search": home.run_id, "metatrain.trial": str(trial.number)}
    if parent_run is not None:
        tags["mlflow.parentRunId"] = parent_run
    return TrialSpec(
        number=trial.number,
        run_id=trial_run_id(home, trial.number),
        place=trial_location(home, trial.number),
        config=as_plain(document.trial(trial.configuration)),
        rungs=tuple(rung for rung in schedule.budgets(trial.number) if rung > trial.start),
        metric=document.search.metric,
        tags=tags,
        objectives=document.search.objectives,
        parent=None if trial.parent is None else (trial_location(home, trial.parent), trial.start),
    )
