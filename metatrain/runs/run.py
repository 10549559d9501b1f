"""Run folders: where one training run keeps everything it will be asked for later.

    <root>/<YYYYmmdd-HHMMSS>-<name>-<6 hex>/
        run.json            {"format": 1, "run_id": the folder's name at its creation, "created": ISO 8601, UTC}
        config.yaml         the resolved configuration, as text
        environment.json    what `environment()` saw
        owner.lock          flocked by the driver while it lives
        metrics.jsonl       see `metatrain.tracking.jsonl.JsonLines`
        checkpoints/        see `metatrain.runs.checkpoints`
        evaluations/        one JSON file per evaluation
        plots/              PNG files

`run.json` is written last: a folder without it was never a run. Of a run in object storage this is the folder that
stands for it while a process works with it (`metatrain.runs.remote`).
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
from typing import Any, Protocol

from tasks.io.atomic import atomic_write

FORMAT = 1


class Storage(Protocol):
    """Where a run is kept when that is not the folder at hand."""

    where: str

    def owned(self, take_over: bool, guest: bool, heartbeat_s: float | None) -> AbstractContextManager[None]:
        """Be the run's one owner while the block runs. RunOwnedError: another one is alive."""
        ...

    def owner(self) -> str | None:
        """Who trains the run at this moment, for people."""
        ...

    def commit(self) -> None:
        """What the folder holds now is kept, all of it or nothing. RunLost. OSError: not now, or not ever."""
        ...

    def offer(self) -> None:
        """The same where it is likely to be done now; else it is left to a later commit."""
        ...

    def check(self) -> None:
        """RunLost: another owner was met."""
        ...


@dataclass(frozen=True)
class Run:
    """A run folder that exists. `run_id` is the folder's name at its creation, and stays when the folder is moved."""

    path: Path
    run_id: str
    created: str
    storage: Storage | None = None
    """Where it is kept beyond the folder, if anywhere."""

    @property
    def where(self) -> str:
        """What a person calls the run by, and gives in order to go on with it."""
        return str(self.path) if self.storage is None else self.storage.where

    def commit(self) -> None:
        """What the folder holds now is durable where the run is kept. RunLost: the run has another driver. OSError."""
        if self.storage is not None:
            self.storage.commit()

    def offer(self) -> None:
        """The same in mid-run, where another commit follows: what could not be sent lately waits for a later one."""
        if self.storage is not None:
            self.storage.offer()

    def check(self) -> None:
        """RunLost: the run has another driver by now."""
        if self.storage is not None:
            self.storage.check()

    @property
    def config(self) -> Path:
        """The resolved configuration, as YAML."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """What `environment()` saw when the run was created, as JSON."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """Metrics and events, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder that `metatrain.runs.checkpoints` reads and writes."""
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """One JSON file per evaluation."""
        return self.path / "evaluations"

    @property
    def plots(self) -> Path:
        """PNG files."""
        return self.path / "plots"


def create(root: Path, name: str, config_text: str, environment: Mapping[str, Any]) -> Run:
    """A new run folder under `root`, which is made where it is missing.

    `name` says what the run is about to a person who lists the folder. ValueError: a name that does not fit into a
    folder's, or a root that cannot be written to.
    """
    run_id = fresh_id(name)
    return make(root / run_id, run_id, config_text, environment)


def fresh_id(name: str) -> str:
    """A run's id, which no other has: when it began, its name, and chance."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"run name {name!r} must be 1 to 100 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime())}-{name}-{secrets.token_hex(3)}"


def make(folder: Path, run_id: str, config_text: str, environment: Mapping[str, Any]) -> Run:
    """A new run in `folder`, which is made. ValueError: it cannot be written to."""
    run = Run(folder, run_id, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    try:
        for part in (run.checkpoints, run.evaluations, run.plots):
            part.mkdir(parents=True)
        replace_text(run.config, config_text)
        write_json(run.environment, environment)
        write_json(run.path / "run.json", {"format": FORMAT, "run_id": run_id, "created": run.created})
    except OSError as error:
        shutil.rmtree(run.path, ignore_errors=True)
        where = f"{folder.parent} ({error.strerror})"
        raise ValueError(f"no run can be made in {where}: set runs.root to another folder") from error
    return run


def open_run(path: Path) -> Run:
    """The run in the folder `path`. ValueError: no such folder, not a run, or of another format, with the remedy."""
    if not path.is_dir():
        raise ValueError(f"no run at {path}: there is no such folder; give the folder that `metatrain train` printed")
    try:
        header = json.loads((path / "run.json").read_text(encoding="utf-8"))
        found, run_id, created = header["format"], header["run_id"], header["created"]
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not a run: it has no run.json; give the folder of one run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a run: its run.json is damaged; restore that file or train anew") from error
    if found != FORMAT:
        raise ValueError(f"run {path} has format {found}; this metatrain reads {FORMAT}: use the version that wrote it")
    return Run(path, str(run_id), str(created))


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON at `path`, whole or not at all (`replace_text`)."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write `path` so that a reader, a crash or a power failure meets the old content or the new, nothing between."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
