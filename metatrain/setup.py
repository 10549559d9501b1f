"""What lies between a configuration and its first step: tasks decoded, everything decided, a place to record to.

`metatrain train` does it once, a search for each of its trials.
"""

import os
import time
from collections.abc import Mapping

import torch

from metatrain import runs
from metatrain.config.dry_run import rehearse, told
from metatrain.config.load import as_plain, resolved
from metatrain.runs import Run
from metatrain.settings import Config
from metatrain.tracking.console import progress_bar
from metatrain.tracking.jsonl import CompositeRecorder, JsonlRecorder
from metatrain.types import Recorder
from metatrain.yaml_config import flatten


def prepare(settings: Config) -> float:
    """Decode what the tasks need, with a progress bar where that takes a while; returns the seconds it took."""
    began = time.monotonic()
    with progress_bar(f"preparing {settings.names.tasks}") as progress, told(settings):
        settings.tasks.source.prepare(progress)
    return round(time.monotonic() - began, 3)


def settled(settings: Config) -> Config:
    """`settings` with everything decided that depends on this machine; what cannot be run is refused here."""
    reach(settings)
    return decided(settings)


def reach(settings: Config) -> None:
    """Ask for MLflow, where runs are recorded there. TrackingError: no answer. ValueError: it lets nobody in."""
    if settings.tracking.uri is not None:
        from metatrain.tracking.mlflow_connection import preflight

        preflight(settings.tracking.uri)


def decided(settings: Config) -> Config:
    """The same, whoever it is recorded by. ValueError: it cannot be trained, here or anywhere."""
    device = torch.device("cuda" if settings.executor.gpus_per_worker > 0 else "cpu")
    engine = rehearse(settings).engine_on(device)
    return resolved(settings, {"vectorize": engine.vectorize, "compile": "on" if engine.compile else "off"})


def recorders(
    settings: Config, home: Run, progress: Recorder | None = None, tags: Mapping[str, str] | None = None
) -> Recorder:
    """Where a run that is trained is recorded: its folder, MLflow where asked for (with more `tags`), the terminal."""
    return CompositeRecorder(
        [JsonlRecorder(home.metrics), *tracked(settings, home, tags), *([progress] if progress else [])]
    )


def tracked(settings: Config, home: Run, tags: Mapping[str, str] | None = None) -> list[Recorder]:
    """MLflow, where asked for."""
    if settings.tracking.uri is None:
        return []
    from metatrain.tracking.mlflow_recorder import MLflowRecorder  # imports mlflow: seconds

    experiment, parameters = settings.tracking.experiment, flatten(as_plain(settings))
    said = labels(settings) | dict(tags or {})
    return [MLflowRecorder(settings.tracking.uri, experiment, home.run_id, parameters, said)]


def labels(settings: Config) -> dict[str, str]:
    """MLflow's tags of a run: what people look for it by."""
    found = {"algorithm": settings.names.algorithm, "tasks": settings.names.tasks, "model": settings.names.model}
    found["mlflow.user"] = runs.current_user()
    job = os.environ.get(runs.JOB_ID)
    return found if job is None else {**found, "metatrain.job_id": job}
