"""Prepare a run: decode its tasks, check and resolve its configuration, build the driver's worker and the recorders."""

import os
import time
from collections.abc import Mapping
from typing import Any

from metatrain import runs
from metatrain.config.dry_run import dry_run, explain_user_errors
from metatrain.config.load import as_plain
from metatrain.runs import Run
from metatrain.settings import Config
from metatrain.tracking.console import progress_bar
from metatrain.tracking.jsonl import CompositeRecorder, JsonlRecorder
from metatrain.tracking.retrying import Notify, RetryingRecorder, print_event
from metatrain.training.devices import driver_device
from metatrain.training.worker import Worker
from metatrain.types import Recorder
from metatrain.validation import require
from metatrain.yaml_config import flatten


def prepare(settings: Config) -> float:
    """Decode what the tasks need, with a progress bar if that takes a while; return the seconds it took."""
    began = time.monotonic()
    with progress_bar(f"preparing {settings.names.tasks}") as progress, explain_user_errors(settings):
        settings.tasks.source.prepare(progress)
    return round(time.monotonic() - began, 3)


def set_up(settings: Config, home: Run | None = None) -> Worker:
    """Return the driver's worker, with the resolved configuration. ValueError: `settings` cannot be run here.

    home: the run that goes on or is evaluated; None for a new one.
    """
    check_mlflow(settings)
    return dry_run(settings, driver_device(settings), home)


def check_mlflow(settings: Config) -> None:
    """Check that MLflow answers, if it is used. TrackingError: no answer. ValueError: it refuses the login."""
    if settings.tracking.uri is not None:
        from metatrain.tracking.mlflow_connection import check_writable

        check_writable(settings.tracking.uri)


def recorders(
    settings: Config, home: Run, progress: Recorder | None = None, tags: Mapping[str, str] | None = None
) -> Recorder:
    """Return what records a training run: its folder, MLflow if it is used (with more `tags`), the terminal."""
    told = [JsonlRecorder(home.metrics), *([progress] if progress else [])]
    first, *rest = told
    return CompositeRecorder([first, *tracked(settings, home, tags, CompositeRecorder(told).event), *rest])


def tracked(
    settings: Config, home: Run, tags: Mapping[str, str] | None = None, notify: Notify = print_event
) -> list[Recorder]:
    """Return the MLflow recorder, if MLflow is used. notify: told when MLflow stops to answer, and when it is back."""
    return tracked_as(flatten(as_plain(settings)), home, tags, notify)


def tracked_as(
    plain: Mapping[str, Any], home: Run, tags: Mapping[str, str] | None = None, notify: Notify = print_event
) -> list[Recorder]:
    """Return the MLflow recorder of a run with these flat settings, without building what they name."""
    uri, experiment = (plain.get(f"tracking.{name}") for name in ("uri", "experiment"))
    if uri is None:
        return []
    require(isinstance(uri, str) and isinstance(experiment, str), "tracking: uri and experiment are texts: fix them")
    from metatrain.tracking.mlflow_recorder import MLflowRecorder  # imports mlflow: seconds

    parts = {part: str(plain.get(f"{part}.name", "")) for part in ("algorithm", "tasks", "model")}
    recorder = MLflowRecorder(str(uri), str(experiment), home.run_id, plain, _labels(parts) | dict(tags or {}))
    return [RetryingRecorder(recorder, home.metrics, home.where, notify)]


def labels(settings: Config) -> dict[str, str]:
    """Return the MLflow tags by which people find a run."""
    names = settings.names
    return _labels({"algorithm": names.algorithm, "tasks": names.tasks, "model": names.model})


def _labels(parts: Mapping[str, str]) -> dict[str, str]:
    found = {**parts, "mlflow.user": runs.current_user()}
    job = os.environ.get(runs.JOB_ID)
    return found if job is None else {**found, "metatrain.job_id": job}
