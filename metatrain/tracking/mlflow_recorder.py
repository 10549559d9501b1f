"""Record a run in MLflow. mlflow is imported here alone, and only once a recorder starts: it takes seconds.

A run of ours is one MLflow run, found by its tag `metatrain.run_id`: a driver may be killed between any two calls.
Metrics go in batches that MLflow takes whole or not at all, and per key in the order of their steps, so what has
arrived is a prefix, and a resumed driver needs the last step of each key alone to know what to send. Events become
tags, the newest of each kind as `event.<kind>`: searchable, and no file is sent again for each line; their whole
story is in metrics.jsonl.
"""

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from metatrain.redact import mask
from metatrain.tracking.jsonl import new_points
from metatrain.tracking.mlflow_connection import TrackingError, database_of, preflight, resolve_uri
from metatrain.types import RunStatus

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

Value = str | float | int | bool | None

RUN_ID_TAG = "metatrain.run_id"
_STEPS = "outer.steps"
EXTENDED_STEPS = "extended.outer.steps"
"""The tag that holds the steps of a run that was extended: MLflow's parameters never change."""
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
RUNS_PER_CALL = 1000
STATUSES: dict[RunStatus, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
CHATTY = ("mlflow.store.db.utils", "alembic")  # they tell of each table that is made
QUIET = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output belongs to results
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # training does not call home
}


BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's own retries take minutes, in which nothing is trained; `RetryingRecorder` tries again later."""


class MLflowRecorder:
    """Record one run, `run_id`, in `experiment` of the MLflow at `uri`.

    `params` is the flat configuration; `tags` say what a person searches by (git revision, algorithm, tasks). Both are
    written once: a resume adds what a killed driver left out and changes nothing. `artifact_location` is for an
    experiment that is not there yet; for SQLite it is `mlartifacts` beside the database.
    ValueError: a uri that MLflow cannot use. Every call raises TrackingError where MLflow does not do its part.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_id: str,
        params: Mapping[str, Value],
        tags: Mapping[str, str],
        artifact_location: str | None = None,
        send_seconds: float = 3.0,
    ) -> None:
        self.uri = resolve_uri(uri)
        self.mlflow_run_id: str | None = None
        """MLflow's own id of the run, once started."""
        self._experiment, self._run_id = experiment, run_id
        self._params = {key: _as_text(value) for key, value in params.items()}
        self._tags = {**tags, RUN_ID_TAG: run_id}
        self._artifact_location = artifact_location or _beside_database(self.uri)
        self._send_seconds = send_seconds
        self._sent = 0.0
        self._last: dict[str, int] = {}
        self._metrics: list[Metric] = []
        self._events: dict[str, str] = {}

    def start(self, step: int, total: int) -> None:
        """Find the run or make it, set it running, and learn which points it has already.

        Called again after a failure, forget what was not sent.
        """
        preflight(self.uri)
        with one_line_errors(self.uri):
            self._client = open_client(self.uri)
            run = self._find_or_create()
            self.mlflow_run_id = run.info.run_id
            self._client.update_run(self.mlflow_run_id, status="RUNNING")
            missing = {key: value for key, value in self._params.items() if key not in run.data.params}
            self._log_params(missing)
            if run.data.params.get(_STEPS, self._params.get(_STEPS)) != self._params.get(_STEPS):
                self._client.set_tag(self.mlflow_run_id, EXTENDED_STEPS, self._params.get(_STEPS))
        # The newest point of each key, in one small answer; whole histories take a second per 30,000 points.
        self._last = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._metrics.clear()
        self._sent = time.monotonic()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep what is new, and send what is kept every few seconds."""
        self.keep(step, metrics)
        if time.monotonic() - self._sent >= self._send_seconds:
            self.flush()

    def keep(self, step: int, metrics: Mapping[str, float], moment: float | None = None) -> int:
        """Keep what is new for the next `flush`, and return how many points that are. moment: unix time, if not now."""
        from mlflow.entities import Metric

        fresh = new_points(self._last, step, metrics)
        milliseconds = int((time.time() if moment is None else moment) * 1000)
        self._metrics += [Metric(key, value, milliseconds, step) for key, value in fresh.items()]
        return len(fresh)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Do nothing: progress is shown, not kept."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload the file under its own name, into `folder` of the run's artifacts."""
        with one_line_errors(self.uri):
            self._client.log_artifact(self._started(), str(path), folder or None)

    def event(self, step: int, kind: str, text: str) -> None:
        """Keep the event for the next batch, as the tag `event.<kind>`."""
        self._events[f"event.{kind}"] = f"step {step}: {text}"

    def flush(self) -> None:
        """Send everything. What was not taken is kept, and sent by the next call."""
        from mlflow.entities import RunTag

        run_id = self._started()
        with one_line_errors(self.uri):
            while self._metrics or self._events:
                tags = [RunTag(key, text) for key, text in self._events.items()]
                self._client.log_batch(run_id, metrics=self._metrics[:METRICS_PER_CALL], tags=tags)
                del self._metrics[:METRICS_PER_CALL]
                self._events.clear()
        self._sent = time.monotonic()

    def close(self, status: RunStatus) -> None:
        """Flush and set the final status, if the run was started."""
        if self.mlflow_run_id is not None:
            self.flush()
            with one_line_errors(self.uri):
                self._client.set_terminated(self.mlflow_run_id, STATUSES[status])
            self.mlflow_run_id = None

    def set_child_statuses(self, others: Mapping[str, RunStatus]) -> None:
        """Set the final status of this run's children, by our ids, whose own process could not do so."""
        with one_line_errors(self.uri):
            for run in self._unfinished_children():
                ended = others.get(run.data.tags.get(RUN_ID_TAG, ""))
                if ended is not None and STATUSES[ended] != run.info.status:
                    self._client.set_terminated(run.info.run_id, STATUSES[ended])

    def _unfinished_children(self) -> list["Run"]:
        """Return them page by page, all before any is changed: a page is what is left of the query at that time."""
        query = f"tags.`mlflow.parentRunId` = '{self._started()}' and attributes.status != 'FINISHED'"
        experiment_id = _experiment(self._client, self._experiment, self._artifact_location)
        found: list[Run] = []
        token: str | None = None
        while token is None or token:
            page = self._client.search_runs([experiment_id], query, max_results=RUNS_PER_CALL, page_token=token)
            found += page
            token = page.token or ""
        return found

    def _started(self) -> str:
        assert self.mlflow_run_id is not None, "start() finds the run"
        return self.mlflow_run_id

    def _find_or_create(self) -> "Run":
        experiment_id = _experiment(self._client, self._experiment, self._artifact_location)
        query = f"tags.`{RUN_ID_TAG}` = '{self._run_id}'"
        found = self._client.search_runs([experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"])
        return found[0] if found else self._client.create_run(experiment_id, tags=self._tags, run_name=self._run_id)

    def _log_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        rest = iter(params.items())
        while batch := list(islice(rest, PARAMS_PER_CALL)):
            self._client.log_batch(self._started(), params=[Param(key, value) for key, value in batch])


@contextmanager
def one_line_errors(uri: str, then: str = "then go on with `metatrain train --resume`") -> Iterator[None]:
    """Turn MLflow's exceptions into a TrackingError of one line with the remedy."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, ImportError) as error:  # a database may want a package that is not there
        reason = " ".join(str(error).split())[:300]
        text = f"MLflow at {mask(uri)} failed ({reason}): fix it, {then}"
        raise TrackingError(text, reason=f"{mask(uri)}: {reason}") from error


def open_client(uri: str) -> "MlflowClient":
    """Return a client that prints nothing; create the SQLite database if it is missing."""
    for name, value in (QUIET | BRIEF).items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for logger in CHATTY:
        logging.getLogger(logger).setLevel(logging.WARNING)

    if (database := database_of(uri)) and not database.exists():
        _create_database(database)
    return MlflowClient(tracking_uri=uri)


def _create_database(path: Path) -> None:
    """Have MLflow make its tables in a file aside, and link it into place.

    Made in place, a database whose maker is killed half-way is refused for good by later ones. Another driver may be
    quicker: its database stands. Where the file system has no links, MLflow makes it in place after all.
    """
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as aside:
        made = Path(aside) / path.name
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
        with suppress(OSError):
            path.hardlink_to(made)


def _experiment(client: "MlflowClient", name: str, artifact_location: str | None) -> str:
    """Return the id of the experiment; create it if missing, which another driver may do at the same moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(f"MLflow experiment {name!r} was deleted: restore it or set tracking.experiment to another")
    return str(found.experiment_id)


def _beside_database(uri: str) -> str | None:
    database = database_of(uri)
    return (database.parent / "mlartifacts").as_uri() if database else None


def _as_text(value: Value) -> str:
    """Return the value as YAML, so that a parameter can be pasted back as an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
