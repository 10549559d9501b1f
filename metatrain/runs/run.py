"""Lay out a run folder: the files in which one training run keeps everything.

    <root>/<YYYYmmdd-HHMMSS>-<name>-<6 hex>/
        run.json            {"format": 1, "run_id": the folder's name at its creation, "created": ISO 8601, UTC}
        data.json           what data it is trained on (`metatrain.runs.data_record`), of sources that can list classes
        config.yaml         the resolved configuration, as text
        environment.json    the result of `describe_environment()`
        signature           shows that its user made it (`metatrain.runs.signature`)
        owner.lock          flocked by the driver while it lives
        metrics.jsonl       see `metatrain.tracking.jsonl.JsonlRecorder`
        progress.json       how far a validation or test is, while it lasts
        initial/            what it began with, if that came from a file or a run (`metatrain.training.initial`)
        checkpoints/        see `metatrain.runs.checkpoints`
        evaluations/        one JSON file per evaluation
        plots/              PNG files

`run.json` is written last: a folder without it was never a run. A run in S3 is worked on in a local copy of this folder
(`metatrain.runs.remote`).
"""

import json
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

from metatrain.runs.signature import sign_config
from metatrain.validation import require
from tasks.io.atomic import atomic_write
from tasks.io.json_documents import check_json, read_json

FORMAT = 1
_RESTORE = "restore that file or train anew"


class _Header(TypedDict):
    """The content of run.json."""

    format: int
    run_id: str
    created: str


class RunStorage(Protocol):
    """Keep a run somewhere beyond the local folder."""

    where: str

    def lock(self, take_over: bool, guest: bool, heartbeat_s: float | None) -> AbstractContextManager[None]:
        """Own the run while the block runs. Raise RunOwnedError where another owner is alive."""

    def find_owner(self) -> str | None:
        """Return who trains the run at this moment, for people."""

    def commit(self) -> None:
        """Store what the folder holds now, all of it or nothing. Raise RunLost, or OSError where it failed."""

    def try_commit(self) -> None:
        """Commit, unless a recent commit failed; a later commit then stores the rest."""

    def check_ownership(self) -> None:
        """Raise RunLost where another owner was met."""


@dataclass(frozen=True)
class Run:
    """A run folder that exists. `run_id` is the folder's name at its creation, and stays when the folder is moved."""

    path: Path
    run_id: str
    created: str
    storage: RunStorage | None = None
    """Where the run is kept beyond the folder; None for the folder alone."""

    @property
    def where(self) -> str:
        """Return the path or URI that people know the run by and resume it with."""
        return str(self.path) if self.storage is None else self.storage.where

    def commit(self) -> None:
        """Make what the folder holds now durable where the run is kept. Raise RunLost, or OSError where it failed."""
        if self.storage is not None:
            self.storage.commit()

    def try_commit(self) -> None:
        """Commit in mid-run, unless a recent commit failed: a later one stores the rest."""
        if self.storage is not None:
            self.storage.try_commit()

    def check_ownership(self) -> None:
        """Raise RunLost where the run has another driver by now."""
        if self.storage is not None:
            self.storage.check_ownership()

    @property
    def config(self) -> Path:
        """Return the path of the resolved configuration, as YAML."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Return the path of the environment in which the run was created, as JSON."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """Return the path of metrics and events, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Return the folder that `metatrain.runs.checkpoints` reads and writes."""
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """Return the folder of evaluations, one JSON file each."""
        return self.path / "evaluations"

    @property
    def plots(self) -> Path:
        """Return the folder of PNG files."""
        return self.path / "plots"


def new_run_id(name: str) -> str:
    """Return a unique run id: local time, `name`, and chance. Raise ValueError for a name that no folder can have."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"run name {name!r} must be 1 to 100 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime())}-{name}-{secrets.token_hex(3)}"


def create_folder(folder: Path, run_id: str, config_text: str, environment: Mapping[str, Any]) -> Run:
    """Create a run in `folder`, which must not exist. Raise ValueError where it cannot be written."""
    run = Run(folder, run_id, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    try:
        for part in (run.checkpoints, run.evaluations, run.plots):
            part.mkdir(parents=True)
        replace_text(run.config, config_text)
        write_json(run.environment, environment)
        sign_config(run.path)
        write_json(run.path / "run.json", {"format": FORMAT, "run_id": run_id, "created": run.created})
    except OSError as error:
        shutil.rmtree(run.path, ignore_errors=True)
        where = f"{folder.parent} ({error.strerror})"
        raise ValueError(f"no run can be made in {where}: set runs.root to another folder") from error
    return run


def open_folder(path: Path) -> Run:
    """Return the run in `path`. Raise ValueError where there is no folder, no run, or one of another format."""
    if not path.is_dir():
        raise ValueError(f"no run at {path}: there is no such folder; use the folder that `metatrain train` printed")
    try:
        header = check_json(read_json(path / "run.json", _RESTORE), _Header, str(path / "run.json"), _RESTORE)
        require(header["run_id"].isprintable() and header["created"].isprintable(), "names that nobody can read")
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not a run: it has no run.json; use the folder of one run") from error
    except OSError as error:
        raise ValueError(f"{path}: its run.json cannot be read ({error.strerror}): {_RESTORE}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a run: its run.json is damaged; {_RESTORE}") from error
    if header["format"] != FORMAT:
        wrong = f"has format {header['format']}; this metatrain reads {FORMAT}"
        raise ValueError(f"run {path} {wrong}: use the version that wrote it")
    return Run(path, header["run_id"], header["created"])


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically (`replace_text`)."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write `path` atomically: a reader, a crash or a power failure finds the old content or the new."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
