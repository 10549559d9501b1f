"""Create and open a search's directory, and specify its trials.

<root>/<search id>/
    run.json, environment.json, owner.lock    as of a run
    config.yaml          the search configuration, resolved (`tune.config.search_config`)
    journal.jsonl        the journal, from which a search is resumed (`tune.history.journal`)
    clock.jsonl          {"event": 1, "seconds": 3.2, "time": …}: when each event of the journal was written
    experience.json      observations of prior studies, if `search.warm_start` is set
    data.json            what data its trials are trained on (`metatrain.runs.data_record`)
    tasks.json           the signature of its tasks, for later searches to compare theirs with
    best.yaml            the best configuration so far, ready for `metatrain train`
    trials/0000/         each trial's own run
"""

from metatrain.config.load import as_plain
from metatrain.runs import Run, describe_environment, new_run_id
from metatrain.runs.locations import create_run_at, open_run
from metatrain.trust import require_known_code
from metatrain.validation import require
from metatrain.yaml_config import load_yaml
from tasks.io.home import home_path
from tasks.io.remote_fs import is_uri
from tune.config.search_config import SearchConfig, read_search_config
from tune.execution.trial_spec import TrialSpec
from tune.history.trials import Trial

JOURNAL, CLOCK, BEST = "journal.jsonl", "clock.jsonl", "best.yaml"
PRIOR_STUDIES, TASKS = "experience.json", "tasks.json"
UPLOADED = (JOURNAL, CLOCK, BEST, PRIOR_STUDIES, TASKS)
"""Files that MLflow's parent run has too."""


def create_search(config: SearchConfig, beside: dict[str, str]) -> Run:
    """Create the directory of a search, with the texts `beside` as files under their names."""
    settings = config.base.runs
    root = settings.root if is_uri(settings.root) else str(home_path(settings.root).absolute())
    search_id = new_run_id(settings.name)
    place = f"{root.rstrip('/')}/{search_id}"
    return create_run_at(place, search_id, config.to_yaml(), describe_environment(), settings.heartbeat, beside)


def open_search(place: str, trust: bool = False) -> tuple[Run, SearchConfig]:
    """Open the directory of a search and read its configuration.

    ValueError: there is none, or this user did not make it, and it names code to import, without `trust`.
    """
    home = open_run(place if is_uri(place) else str(home_path(place).absolute()))
    plain = load_yaml(home.config, "a search", "search and space")
    require("search" in plain, f"{place}: is a run, not a search: use `metatrain train --resume {place}`")
    require_known_code(home.config, plain, trust)
    return home, read_search_config(plain)


def trial_location(home: Run, number: int) -> str:
    """Return the directory or URI of a trial's run."""
    return f"{home.where}/trials/{number:04d}"


def trial_run_id(home: Run, number: int) -> str:
    """Return the id of a trial's run, unique among all runs."""
    return f"{home.run_id}-{number:04d}"


def make_trial_spec(home: Run, config: SearchConfig, trial: Trial, parent_run: str | None) -> TrialSpec:
    """Return what a trial's process needs to know; `parent_run` is MLflow's id of the search."""
    _, scheduler = config.search.method.settings
    tags = {"metatrain.search": home.run_id, "metatrain.trial": str(trial.number)}
    if parent_run is not None:
        tags["mlflow.parentRunId"] = parent_run
    return TrialSpec(
        number=trial.number,
        run_id=trial_run_id(home, trial.number),
        place=trial_location(home, trial.number),
        config=as_plain(config.trial_config(trial.configuration)),
        rungs=tuple(rung for rung in scheduler.budgets(trial.number) if rung > trial.start),
        metric=config.search.metric,
        tags=tags,
        objectives=config.search.objectives,
        parent=None if trial.parent is None else (trial_location(home, trial.parent), trial.start),
    )
