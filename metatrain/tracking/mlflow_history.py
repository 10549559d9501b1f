"""Read earlier searches and runs from MLflow, for a search that starts from their results."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from metatrain.redact import mask
from metatrain.tracking.mlflow_connection import TrackingError, preflight, resolve_uri
from metatrain.tracking.mlflow_recorder import RUN_ID_TAG, one_line_errors, open_client
from tasks.plugins import suggest_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SEARCH_TAG = "metatrain.search"
TRIAL_TAG = "metatrain.trial"
PARENT_TAG = "mlflow.parentRunId"
_PAGE = 1000
_AGAIN = "then search again"


class MlflowRecord(NamedTuple):
    """A search, or a run that was no trial of one.

    metrics: the values in the order of their steps, of those that were asked for. files: the artifacts that were asked
    for and are there, as text. problem: why some are not; "" where nothing went wrong.
    """

    name: str
    search: bool
    finished: bool
    metrics: Mapping[str, Sequence[float]]
    files: Mapping[str, str]
    problem: str


def read_records(uri: str, experiment: str, files: Sequence[str], metrics: Sequence[str]) -> Iterator[MlflowRecord]:
    """Yield the searches and runs of an experiment, oldest first. Raise ValueError where there is no such experiment.

    Raise TrackingError where MLflow fails. A single run that cannot be read has a `problem` instead.
    """
    uri = resolve_uri(uri)
    preflight(uri)
    with one_line_errors(uri, _AGAIN):
        client = open_client(uri)
        runs = list(_runs(client, _experiment_id(client, uri, experiment)))
    for run in runs:
        tags = run.data.tags
        if RUN_ID_TAG in tags and PARENT_TAG not in tags and TRIAL_TAG not in tags:
            yield _read(client, uri, run, files, metrics)


def _experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "active":
        return str(found.experiment_id)
    known = [experiment.name for experiment in client.search_experiments()]
    hint = suggest_name(name, known)
    there = f"choose among {', '.join(known)}" if known else "record some runs first"
    raise ValueError(f"search.warm_start: no experiment '{name}' in {mask(uri)}{hint}: {there}")


def _runs(client: "MlflowClient", experiment_id: str) -> "Iterator[Run]":
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], max_results=_PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _read(client: "MlflowClient", uri: str, run: "Run", files: Sequence[str], metrics: Sequence[str]) -> MlflowRecord:
    """Read one run; what fails becomes its `problem`."""
    search, finished = SEARCH_TAG in run.data.tags, run.info.status == "FINISHED"
    values: dict[str, list[float]] = {}
    texts: dict[str, str] = {}
    problem = ""
    try:
        with one_line_errors(uri, _AGAIN), tempfile.TemporaryDirectory() as folder:
            there = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
            for name in [name for name in files if name in there]:
                texts[name] = Path(client.download_artifacts(run.info.run_id, name, folder)).read_text(encoding="utf-8")
            for key in [key for key in metrics if key in run.data.metrics and not search]:
                points = sorted(client.get_metric_history(run.info.run_id, key), key=lambda point: point.step)
                values[key] = [point.value for point in points if math.isfinite(point.value)]
    except (TrackingError, OSError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
    return MlflowRecord(run.data.tags[RUN_ID_TAG], search, finished, values, texts, problem)
