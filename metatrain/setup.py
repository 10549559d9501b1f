"""Prepare a run: decode its tasks, check and resolve its configuration, build the driver's worker and the recorders."""

import os
import time
from collections.abc import Mapping

from metatrain import runs
from metatrain.config.dry_run import dry_run, explain_user_errors
from metatrain.config.load import as_plain
from metatrain.runs import Run
from metatrain.settings import Config
from metatrain.tracking.console import progress_bar
from metatrain.tracking.jsonl import CompositeRecorder, JsonlRecorder
from metatrain.training.worker import Worker, driver_device
from metatrain.types import Recorder
from metatrain.yaml_config import flatten


def prepare(settings: Config) -> float:
    """Decode what the tasks need, with a progress bar if that takes a while; return the seconds it took."""
    began = time.monotonic()
    with progress_bar(f"preparing {settings.names.tasks}") as progress, explain_user_errors(settings):
        settings.tasks.source.prepare(progress)
    return round(time.monotonic() - began, 3)


def set_up(settings: Config) -> Worker:
    """Return the driver's worker, with the resolved configuration. ValueError: `settings` cannot be run here."""
    check_mlflow(settings)
    return dry_run(settings, driver_device(settings))


def check_mlflow(settings: Config) -> None:
    """Check that MLflow answers, if it is used. TrackingError: no answer. ValueError: it refuses the login."""
    if settings.tracking.uri is not None:
        from metatrain.tracking.mlflow_connection import preflight

        preflight(settings.tracking.uri)


def recorders(
    settings: Config, home: Run, progress: Recorder | None = None, tags: Mapping[str, str] | None = None
) -> Recorder:
    """Return what records a training run: its folder, MLflow if it is used (with more `tags`), the terminal."""
    return CompositeRecorder(
        [JsonlRecorder(home.metrics), *tracked(settings, home, tags), *([progress] if progress else [])]
    )


def tracked(settings: Config, home: Run, tags: Mapping[str, str] | None = None) -> list[Recorder]:
    """Return the MLflow recorder, if MLflow is used."""
    if settings.tracking.uri is None:
        return []
    from metatrain.tracking.mlflow_recorder import MLflowRecorder  # imports mlflow: seconds

    experiment, parameters = settings.tracking.experiment, flatten(as_plain(settings))
    all_tags = labels(settings) | dict(tags or {})
    return [MLflowRecorder(settings.tracking.uri, experiment, home.run_id, parameters, all_tags)]


def labels(settings: Config) -> dict[str, str]:
    """Return the MLflow tags by which people find a run."""
    found = {"algorithm": settings.names.algorithm, "tasks": settings.names.tasks, "model": settings.names.model}
    found["mlflow.user"] = runs.current_user()
    job = os.environ.get(runs.JOB_ID)
    return found if job is None else {**found, "metatrain.job_id": job}
