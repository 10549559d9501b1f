"""A search from its first trial to its report: what `metatrain search` does, and a program of one's own may call."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.tune import TuneError

from cluster.connection import connect_ray
from metatrain import runs
from metatrain.config.load import resolved
from metatrain.errors import RunFailed, RunLost
from metatrain.runs import Run
from metatrain.types import RunStatus
from metatrain.validation import require
from tasks.io.remote_fs import is_uri
from tune.config.search_config import SearchConfig
from tune.execution.coordinator import Coordinator
from tune.execution.placement import TrialResources, count_nodes_without, max_concurrent_trials, trial_resources
from tune.execution.ray_tune import CapacityMonitor, run_trials
from tune.history.trials import Trial
from tune.monitor import Monitor
from tune.report.collect import collect
from tune.report.page import NAME, render
from tune.report.plots import plots
from tune.search_dir import EXPERIENCE, JOURNAL, TASKS, assignment, create_search
from tune.study import Study
from tune.transfer.prior_studies import PriorStudies, gather_prior_studies, read_prior_studies
from tune.transfer.task_similarity import signature


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What came of a search, or of this part of it. `seconds` are of all its parts.

    ended: why no more trials begin; empty where it was interrupted. failed: that is a failure.
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
        """As plain values, for --json."""
        plain = dict(vars(self))
        best = plain.pop("best")
        if best is not None:
            step, value = best.results[-1]
            place = {"trial": best.number, "run_dir": f"{self.place}/trials/{best.number:04d}"}
            plain["best"] = {**place, "step": step, "value": value, "configuration": dict(best.configuration)}
        return plain


def search(
    document: SearchConfig,
    home: Run | None = None,
    take_over: bool = False,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: None,
) -> SearchResult:
    """Conduct a search in the folder `home` (a new one by default), going on where its journal ends.

    `stop` is asked twice a second; when it says so, trials keep their state and the outcome is not `ended`.
    ValueError, OSError: it cannot be done so; nothing is left behind then. RunFailed: it began, and came to grief.
    """
    document = dataclasses.replace(document, base=resolved(document.base, {}))
    _check_metric(document)
    needed = trial_resources(document.base.executor, document.search.cpus)
    with connect_ray(document.base.executor, besides=1 if document.base.executor.name == "ray" else 0):
        settings = document.base.executor
        together = max_concurrent_trials(needed, document.search.at_once, grows=not isinstance(settings.workers, int))
        _check_shared(document, home)
        home = home or create_search(document, _beside(document, say))
        say(f"search {home.where}")
        owned = runs.own(home, take_over, heartbeat_s=document.base.runs.heartbeat)
        with owned, Study(document.study_spec(_experience(home)), home.path / JOURNAL) as found:
            try:
                home.commit()
                return _conducted(found, document, home, (needed, together), stop, say)
            except (OSError, ValueError, RayError, TuneError, RunLost) as error:
                raise RunFailed(f"{' '.join(str(error).split())}\n{resume_hint(home.where)}") from error


def resume_hint(place: str) -> str:
    """How to go on with a search."""
    return f"the search is kept in {place}: go on with `metatrain search --resume {shlex.quote(place)}`"


def _conducted(
    found: Study,
    document: SearchConfig,
    home: Run,
    room: tuple[TrialResources, int],
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> SearchResult:
    chronicle = Monitor(home, document)
    minutes = document.search.minutes

    def assign(trial: Trial) -> Any:
        return assignment(home, document, trial, chronicle.parent_run)

    def attend() -> bool:
        chronicle.tell(found.history)
        return stop() or (minutes is not None and chronicle.clock.seconds >= 60 * minutes)

    coordinator = Coordinator(found, assign, home.commit, room[1], document.search.retries)
    with _told(chronicle, found) as close:
        run_trials(coordinator, room[0], attend, _room(room[0], document, say))
        ended, failed = _why(found, coordinator.failure, document, chronicle.clock.seconds)
        chronicle.tell(found.history)
        chronicle.clock.note(last=True)
        _kept(home, chronicle)
        close("failed" if failed else "finished" if ended else "interrupted")
    history = found.history
    seconds = round(chronicle.clock.seconds, 1)
    return SearchResult(
        home.run_id, home.where, len(history.trials), history.steps, seconds, ended, failed, history.best()
    )


def _room(needed: TrialResources, document: SearchConfig, say: Callable[[str], None]) -> CapacityMonitor:
    return CapacityMonitor(needed, document.search.at_once, document.base.executor.deadline, say)


def _why(found: Study, trouble: str, document: SearchConfig, seconds: float) -> tuple[str, bool]:
    """Why a session is over, and whether that is a failure; "" where somebody wanted it to be."""
    outcome, minutes = found.stop_reason(), document.search.minutes
    if trouble:
        return trouble, True
    if outcome is not None and outcome.failed:
        return f"{outcome.reason}: mend the space, or go on with a larger search.failures", True
    if outcome is not None and not found.running:
        return outcome.reason, False
    late = minutes is not None and seconds >= 60 * minutes
    return (f"its {minutes:g} minutes are over", False) if late else ("", False)


@contextmanager
def _told(chronicle: Monitor, found: Study) -> Iterator[Callable[[RunStatus], None]]:
    """The chronicle begun, and closed whatever happens."""
    chronicle.start(found.history)
    status: RunStatus = "failed"

    def close(ended: RunStatus) -> None:
        nonlocal status
        status = ended

    try:
        yield close
    except RunLost:
        chronicle.leave()
        raise
    finally:
        chronicle.close(found.history, status)


def _kept(home: Run, chronicle: Monitor) -> None:
    """Pictures and page are made, kept with the search and recorded."""
    home.commit()
    story = dataclasses.replace(collect(home), owner=None)  # by the time that it is read
    pictures, page = plots(story, home.path / "plots"), home.path / NAME
    runs.replace_text(page, render(story))
    chronicle.keep()
    chronicle.artifact(page)
    for path in pictures:
        chronicle.artifact(path, "plots")
    home.commit()


def _beside(document: SearchConfig, say: Callable[[str], None]) -> dict[str, str]:
    """What is found out once, when a search begins: what its tasks are like, and what others have seen of such."""
    signed = signature(document.base)
    found = {TASKS: json.dumps(signed, indent=2) + "\n"}
    settings, uri = document.search, document.base.tracking.uri
    if settings.warm_start:
        if uri is None:
            raise ValueError("search.warm_start: earlier searches are read from MLflow: set tracking.uri")
        experience, notes = gather_prior_studies(uri, settings.warm_start, document.space, settings.metric, signed)
        for note in notes:
            say(note)
        for source in experience.sources:
            say(f"experience: {source.name}: {len(source.observations)} observations, weight {source.weight:.2f}")
        found[EXPERIENCE] = json.dumps(experience.plain(), indent=1) + "\n"
    return found


def _experience(home: Run) -> PriorStudies | None:
    """What the search began with, whatever has been learnt elsewhere since."""
    kept = home.path / EXPERIENCE
    return read_prior_studies(json.loads(kept.read_text(encoding="utf-8"))) if kept.exists() else None


def _check_shared(document: SearchConfig, home: Run | None) -> None:
    """ValueError: trials on other nodes would write where nobody finds it."""
    root = document.base.runs.root if home is None else home.where
    missing = 0 if is_uri(root) else count_nodes_without(Path(root).absolute())
    remedy = "set it to s3://BUCKET/FOLDER, or to a disk that all of them share"
    require(not missing, f"runs.root: '{root}' is not there for {missing} of the cluster's nodes: {remedy}")
    uri = document.base.tracking.uri or ""
    file = uri.removeprefix("sqlite:///")
    missing = count_nodes_without(Path(file).absolute().parent) if file != uri else 0
    remedy = "set it to a server's http://…, or to null"
    require(not missing, f"tracking.uri: '{uri}' is not there for {missing} of the cluster's nodes: {remedy}")


def _check_metric(document: SearchConfig) -> None:
    """ValueError: runs on these tasks never report the metric."""
    tasks = document.base.tasks
    kind = tasks.source.distribution("validation", tasks.test, 0).spec.kind
    reported = ["validation/accuracy" if kind == "classification" else "validation/mse", "validation/loss"]
    metric = document.search.metric
    known = " or ".join(reported)
    require(metric in reported, f"search.metric: {metric} is never reported on these tasks: set {known}")
