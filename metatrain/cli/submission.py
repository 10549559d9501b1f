"""`metatrain submit`: a command and the folder that it needs, onto a cluster; what can be checked before, is."""

import os
import re
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from metatrain import runs
from metatrain.cli.jobs import connected_jobs, shown
from metatrain.config.load import load_config
from metatrain.settings import Config
from metatrain.validation import require
from metatrain.yaml_config import load_yaml
from tasks.io.remote_fs import is_uri

if TYPE_CHECKING:
    from metatrain.cli.profiles import Profile

SENT = ("train", "search", "evaluate")
"""The commands that a cluster runs."""
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
_OURS = ("metatrain", "tasks", "cluster", "tune")


def submit_command(
    command: list[str],
    address: str | None,
    profile: str | None,
    profiles: Path | None,
    follow: bool,
    working_dir: Path,
    env: list[str],
    name: str | None,
) -> None:
    """Submit a command and the folder that it needs to a cluster."""
    with connected_jobs(address, profile, profiles) as (jobs, chosen):
        from metatrain.cli.profiles import secret_files

        keep = secret_files(profiles)
        folder = _entered(working_dir)
        command = command[1:] if command[:1] == ["metatrain"] else command
        arguments = _arguments(command, chosen)
        from cluster.jobs.working_dir import packed

        parcel = packed(folder, keep)
        _require_sent(arguments, parcel.files)
        job_id = _new_id(name or _stem(arguments))
        ours = {_STOP_WAIT: str(chosen.stop_wait), runs.JOB_USER: runs.user()}
        variables = {**ours, **chosen.filled_env(), **dict(map(_variable, env))}
        with tempfile.TemporaryDirectory(prefix="metatrain-") as aside:
            zipped = parcel.written(Path(aside) / "working_dir.zip")
            python = chosen.python or jobs.interpreter()
            metadata = _metadata(command, python, chosen.stop_wait)
            jobs.submit(job_id, [python, "-m", "metatrain", *arguments], zipped, variables, metadata)
        if not follow:
            print(job_id)
            print(f"submitted to {jobs.address}: `metatrain logs {job_id} --follow` shows it", file=sys.stderr)
            return
        print(f"job {job_id} at {jobs.address}", file=sys.stderr)
        shown(jobs, job_id)


def _arguments(command: Sequence[str], chosen: "Profile") -> list[str]:
    """What the cluster runs: `command`, a new run's settings those of the profile first; what can be checked, is."""
    known = bool(command) and command[0] in SENT
    require(known, f"COMMAND: a cluster runs {', '.join(SENT)}: begin with one of them, `submit -- train CONFIG`, say")
    given = _parsed(command)
    run = given.get("run_dir") or given.get("resume")
    lasting = run is None or is_uri(run) or Path(run).is_absolute()
    require(
        lasting, f"'{run}': a run on a cluster is named by s3://…, or by an absolute path of a disk that it shares: do"
    )
    if run is not None:
        return list(command)
    file = _file(given)
    if file is None:
        raise ValueError("CONFIG: missing: give a YAML file of this folder, or --resume RUN")
    at = command.index(file)
    arguments = [*command[: at + 1], *chosen.overrides(), *command[at + 1 :]]
    own = given["overrides"] or []
    try:
        settings = _loaded(command[0], file, [*chosen.overrides(), *own])
    except ValueError as error:
        _loaded(command[0], file, own)  # which may be what is wrong
        raise ValueError(f"{error} (so the profile has it, under settings)") from error
    _require_lasting(settings)
    return arguments


def _file(given: Mapping[str, Any]) -> str | None:
    """The YAML file that a command names."""
    file: str | None = given.get("config") or given.get("file")
    return file


def _loaded(command: str, file: str, overrides: Sequence[str]) -> Config:
    """The configuration of the run, or of a search's trials."""
    if command != "search":
        return load_config(Path(file), overrides)
    from tune.config.search_config import load_search_config  # with Optuna, which takes a second

    return load_search_config(Path(file), overrides).base


def _parsed(command: Sequence[str]) -> dict[str, Any]:
    """The parameters of a command of ours, by name, as its own parser reads them."""
    from metatrain.cli import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands[command[0]].make_context(command[0], list(command[1:])).params)


def _require_lasting(settings: Config) -> None:
    """What a run leaves must not lie in the job's own folder, which is removed with it."""
    root, uri = settings.runs.root, settings.tracking.uri
    require(
        is_uri(root) or Path(root).is_absolute(),
        f"runs.root: '{root}' would lie in the job's own folder, which goes with it: set it to s3://BUCKET/FOLDER or "
        "to the absolute path of a disk that the cluster shares, here or in a profile",
    )
    require(
        uri is None or not re.match(r"sqlite:///[^/]", uri),
        f"tracking.uri: '{uri}' would lie in the job's own folder, which goes with it: set it to a server's http://…, "
        "here or in a profile, or to null",
    )


def _require_sent(arguments: Sequence[str], files: Mapping[str, int]) -> None:
    """The configuration must be among what is sent, and nothing that would be taken for a package of ours."""
    tops = {name.partition("/")[0].removesuffix(".py") for name in files if "/" in name or name.endswith(".py")}
    whole = all(f"{package}/__init__.py" in files for package in _OURS)  # a checkout of metatrain, which is then used
    taken = sorted(tops & set(_OURS)) if not whole else []
    require(not taken, f"'{''.join(taken[:1])}': what is named so hides metatrain's own on the cluster: rename it")
    config = _file(_parsed(arguments))
    if config is None or "=" in config:
        return
    base = load_yaml(Path(config), "a configuration").get("base") if arguments[0] == "search" else None
    for path in [Path(config), *([Path(config).parent / base] if base is not None else [])]:
        _require_file(path, files)


def _require_file(path: Path, files: Mapping[str, int]) -> None:
    require(
        not path.is_absolute() and ".." not in path.parts,
        f"{path}: lies outside the folder that is sent: copy it there, or give --working-dir",
    )
    left = ".gitignore or .rayignore names it, it lies behind a link to a folder, or it is where secrets are kept"
    require(path.as_posix() in files, f"{path}: is not sent, since {left}: mend that")


def _entered(working_dir: Path) -> Path:
    """Goes into the folder that is sent, as the job will: paths and modules are then found as there."""
    require(
        working_dir.is_dir(), f"--working-dir: there is no folder '{working_dir}': give one that holds what is sent"
    )
    os.chdir(working_dir)
    sys.path.insert(0, str(Path.cwd()))
    return Path.cwd()


def _variable(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    require(bool(re.fullmatch(r"[A-Za-z_]\w*", name)), f"--env: '{given[:100]}' is not NAME or NAME=VALUE: write it so")
    require(bool(equals) or name in os.environ, f"--env: {name} is not set here: give {name}=VALUE")
    return name, value if equals else os.environ[name]


def _stem(arguments: Sequence[str]) -> str:
    run = re.search(r"\d{8}-\d{6}-(.+)-[0-9a-f]{6}/?$", next(iter(arguments[-1:]), ""))
    named = next((argument for argument in arguments[1:] if argument.endswith((".yaml", ".yml"))), arguments[0])
    return run[1] if run else re.sub(r"[^A-Za-z0-9]+", "-", Path(named).stem).strip("-") or "job"


def _new_id(name: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}", name) is not None
    require(plain, f"--name: {name[:100]!r} cannot begin an id: use letters, digits, '-', '_' and '.', 1 to 61 of them")
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _metadata(arguments: Sequence[str], python: str, stop_wait: int) -> dict[str, str]:
    told = {"metatrain": version("metatrain"), "user": runs.user(), "command": shlex.join(arguments)}
    return told | {"python": python, "stop_wait": str(stop_wait)}
