"""Run one search from its first trial to its report: what `metatrain search` does, and Python programs can call."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.tune import TuneError

from cluster.connection import check_ray, connect_ray
from metatrain import runs
from metatrain.config.load import resolve_paths
from metatrain.config.run_data import data_of, split_as_before
from metatrain.errors import RunFailed, RunLost, WorkersLost
from metatrain.metrics import METRICS
from metatrain.report.page import NAME
from metatrain.runs import Run
from metatrain.runs.data_record import data_files, read_data, require_unchanged
from metatrain.types import RunStatus
from metatrain.validation import require
from tasks.io.json_documents import read_json
from tasks.io.remote_fs import is_uri
from tasks.opening import open_tasks
from tune.config.search_config import SearchConfig
from tune.execution.coordinator import Coordinator
from tune.execution.placement import TrialResources, count_nodes_without, max_concurrent_trials, trial_resources
from tune.execution.ray_tune import CapacityMonitor, run_trials
from tune.history.trials import Trial
from tune.monitor import Monitor
from tune.report.collect import collect
from tune.report.figures import save_figures
from tune.report.page import render
from tune.search_dir import JOURNAL, PRIOR_STUDIES, TASKS, create_search, make_trial_spec
from tune.study import Study
from tune.transfer.prior_studies import PriorStudies, gather_prior_studies, read_prior_studies
from tune.transfer.task_similarity import signature


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The result of a search, or of this session of it. `seconds` are of all its sessions.

    ended: why no more trials begin; empty if it was interrupted. failed: whether that is a failure.
    """

    search_id: str
    place: str
    trials: int
    steps: int
    seconds: float
    ended: str
    failed: bool
    best: Trial | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for --json."""
        plain = dict(vars(self))
        best = plain.pop("best")
        if best is not None:
            step, value = best.results[-1]
            place = {"trial": best.number, "run_dir": f"{self.place}/trials/{best.number:04d}"}
            plain["best"] = {**place, "step": step, "value": value, "configuration": dict(best.configuration)}
        return plain


def search(
    config: SearchConfig,
    home: Run | None = None,
    take_over: bool = False,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: None,
) -> SearchResult:
    """Run a search in the folder `home` (a new one by default), resuming where its journal ends.

    `stop` is called twice a second; once it returns True, trials keep their state and the result has no `ended`.
    ValueError, OSError: the request is wrong, and no folder is left behind. RunFailed: the search began and then
    failed.
    """
    config = dataclasses.replace(config, base=resolve_paths(config.base))
    _check_metric(config)
    needed = trial_resources(config.base.executor, config.search.cpus)
    # Before Ray is started, which takes seconds: what they refuse is refused at once.
    initial = _initial_files(config, say) if home is None else {}
    config = config if home is None else _with_same_data(config, home)
    with connect_ray(config.base.executor, besides=int(config.base.executor.on_ray)):
        settings = config.base.executor
        together = max_concurrent_trials(needed, config.search.at_once, grows=not isinstance(settings.workers, int))
        _check_shared(config, home)
        home = home or create_search(config, initial)
        say(f"search {home.where}")
        owned = runs.lock_run(home, take_over, heartbeat_s=config.base.runs.heartbeat)
        with owned, Study(config.study_spec(_read_prior_studies(home)), home.path / JOURNAL) as study:
            try:
                home.commit()
                return _run_session(study, config, home, (needed, together), stop, say)
            except (OSError, ValueError, RayError, TuneError, RunLost, WorkersLost) as error:
                raise RunFailed(f"{' '.join(str(error).split())}\n{resume_hint(home.where)}") from error


def resume_hint(place: str) -> str:
    """Return the command that resumes a search, in a sentence."""
    return f"the search is kept in {place}: resume with `metatrain search --resume {shlex.quote(place)}`"


def _run_session(
    study: Study,
    config: SearchConfig,
    home: Run,
    room: tuple[TrialResources, int],
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> SearchResult:
    monitor = Monitor(home, config)
    minutes = config.search.minutes

    def make_spec(trial: Trial) -> Any:
        return make_trial_spec(home, config, trial, monitor.parent_run)

    def poll() -> bool:
        check_ray()
        monitor.update(study.history)
        return stop() or (minutes is not None and monitor.clock.seconds >= 60 * minutes)

    coordinator = Coordinator(study, make_spec, home.commit, room[1], config.search.retries)
    capacity = CapacityMonitor(room[0], config.search.at_once, config.base.executor.deadline, say)
    monitor.start(study.history)
    status: RunStatus = "failed"
    try:
        run_trials(coordinator, room[0], poll, capacity)
        ended, failed = _session_end(study, coordinator.failure, config, monitor.clock.seconds)
        monitor.update(study.history)
        monitor.clock.note(last=True)
        _publish_report(home, monitor)
        status = "failed" if failed else "finished" if ended else "interrupted"
    except RunLost:
        monitor.abandon()
        raise
    finally:
        monitor.close(study.history, status)
    history = study.history
    seconds = round(monitor.clock.seconds, 1)
    return SearchResult(
        home.run_id, home.where, len(history.trials), history.steps, seconds, ended, failed, history.best()
    )


def _session_end(study: Study, failure: str, config: SearchConfig, seconds: float) -> tuple[str, bool]:
    """Return why a session is over, empty if the user stopped it, and whether that is a failure."""
    stop, minutes = study.stop_reason(), config.search.minutes
    if failure:
        return failure, True
    if stop is not None and stop.failed:
        return f"{stop.reason}: fix the space, or resume with a larger search.failures", True
    if stop is not None and not study.running:
        return stop.reason, False
    late = minutes is not None and seconds >= 60 * minutes
    return (f"its {minutes:g} minutes are over", False) if late else ("", False)


def _publish_report(home: Run, monitor: Monitor) -> None:
    """Draw plots and page, keep them in the folder and upload them."""
    home.commit()
    story = dataclasses.replace(collect(home), owner=None)  # it has none by the time that it is read
    pictures, page = save_figures(story, home.path / "plots"), home.path / NAME
    runs.replace_text(page, render(story))
    monitor.upload_files()
    monitor.artifact(page)
    for path in pictures:
        monitor.artifact(path, "plots")
    home.commit()


def _initial_files(config: SearchConfig, say: Callable[[str], None]) -> dict[str, str]:
    """Return the files that are written once, when a search begins: its task signature and its prior studies."""
    signature_here = signature(config.base, config.search.probe)
    files = {TASKS: json.dumps(signature_here, indent=2) + "\n", **data_files(data_of(config.base))}
    settings, uri = config.search, config.base.tracking.uri
    if settings.warm_start:
        if uri is None:
            raise ValueError("search.warm_start: earlier searches are read from MLflow: set tracking.uri")
        prior, notes = gather_prior_studies(uri, settings.warm_start, config.space, settings.metric, signature_here)
        for note in notes:
            say(note)
        for one in prior.sources:
            say(f"prior study: {one.name}: {len(one.observations)} observations, weight {one.weight:.2f}")
        files[PRIOR_STUDIES] = json.dumps(prior.to_plain(), indent=1) + "\n"
    return files


def _with_same_data(config: SearchConfig, home: Run) -> SearchConfig:
    """Return the configuration of a search that is resumed. ValueError: its data have changed."""
    kept, now = read_data(home), data_of(config.base)
    if kept is None:
        return dataclasses.replace(config, base=split_as_before(config.base))
    if now is not None:
        require_unchanged(home, kept, now)
    return config


def _read_prior_studies(home: Run) -> PriorStudies | None:
    """Read the prior studies that the search began with; later ones do not count."""
    kept = home.path / PRIOR_STUDIES
    return (
        read_prior_studies(read_json(kept, "restore that file, or search in another folder")) if kept.exists() else None
    )


def _check_shared(config: SearchConfig, home: Run | None) -> None:
    """Raise ValueError if trials on other nodes would write where this one does not see it."""
    root = config.base.runs.root if home is None else home.where
    missing = 0 if is_uri(root) else count_nodes_without(Path(root).absolute())
    remedy = "set it to s3://BUCKET/FOLDER, or to a disk that all of them share"
    require(not missing, f"runs.root: '{root}' is not there for {missing} of the cluster's nodes: {remedy}")
    uri = config.base.tracking.uri or ""
    file = uri.removeprefix("sqlite:///")
    missing = count_nodes_without(Path(file).absolute().parent) if file != uri else 0
    remedy = "set it to a server's http://…, or to null"
    require(not missing, f"tracking.uri: '{uri}' is not there for {missing} of the cluster's nodes: {remedy}")


def _check_metric(config: SearchConfig) -> None:
    """Raise ValueError if runs on these tasks never report the metric."""
    tasks = config.base.tasks
    kind = open_tasks(tasks.source, config.base.names.tasks, "validation", tasks.test, 0).spec.kind
    if hasattr(config.base.algorithm, "score"):  # what it reports is its own choice
        return
    reported = [f"validation/{metric.name}" for metric in METRICS.values() if kind in metric.kinds]
    metric = config.search.metric
    known = " or ".join(reported)
    require(metric in reported, f"search.metric: {metric} is never reported on these tasks: set {known}")
