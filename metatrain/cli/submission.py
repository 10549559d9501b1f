"""Command `submit`: send a folder and a command to a remote cluster, after checking what can be checked here."""

import json
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
from typing import Any

import typer

from cluster.jobs.working_dir import scan_working_dir
from metatrain import runs
from metatrain.cli.jobs import connect_to_jobs, follow_log
from metatrain.cli.profiles import Profile, list_secret_files
from metatrain.config.load import load_config
from metatrain.config.shipped import find_config, shipped_configs
from metatrain.job_secrets import METADATA, split_secrets
from metatrain.own_packages import describe_clash, find_clashes
from metatrain.redact import require_no_logins
from metatrain.settings import Config
from metatrain.validation import require
from metatrain.yaml_config import load_yaml
from tasks.io.home import expand_home
from tasks.io.remote_fs import is_uri

COMMANDS = ("train", "search", "evaluate")
"""The commands that can run on a cluster."""
_LONGEST_NAME = 61
"""Characters of a job's name, before the time and chance that its id ends with."""
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
_PACKAGES = ("metatrain", "tasks", "cluster", "tune")


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
    with connect_to_jobs(address, profile, profiles) as (client, chosen):
        exclude = list_secret_files(profiles)
        folder = _enter(working_dir)
        command = command[1:] if command[:1] == ["metatrain"] else command
        arguments = _check_command(command, chosen)
        files = scan_working_dir(folder, exclude)
        _require_sent(arguments, files.files)
        job_id = _make_id(name or _name_job(arguments))
        ours = {_STOP_WAIT: str(chosen.stop_wait), runs.JOB_USER: runs.current_user()}
        variables = {**ours, **chosen.expand_env(), **dict(map(_parse_variable, env))}
        variables, secret = split_secrets(variables, chosen.secret_names())
        with tempfile.TemporaryDirectory(prefix="metatrain-") as scratch:
            archive = files.write_zip(Path(scratch) / "working_dir.zip")
            python = chosen.python or client.interpreter()
            metadata = {
                "metatrain": version("metatrain"),
                "user": runs.current_user(),
                "command": shlex.join(command),
                "python": python,
                "stop_wait": str(chosen.stop_wait),
            } | ({METADATA: json.dumps(secret)} if secret else {})
            if left_out := files.describe_left_out():
                print(left_out, file=sys.stderr)
            client.submit(job_id, [python, "-m", "metatrain", *arguments], archive, variables, metadata)
        if not follow:
            print(job_id)
            print(f"submitted to {client.address}: `metatrain logs {job_id} --follow` shows it", file=sys.stderr)
            return
        print(f"job {job_id} at {client.address}", file=sys.stderr)
        follow_log(client, job_id)


def _check_command(command: Sequence[str], chosen: Profile) -> list[str]:
    """Return the arguments to run: `command`, for a new run with the profile's settings before its own.

    ValueError: the configuration is wrong, or its results would be lost with the job.
    """
    require(
        bool(command) and command[0] in COMMANDS,
        f"COMMAND: a cluster runs {', '.join(COMMANDS)}: use one of them, for instance `submit -- train CONFIG`",
    )
    for word in command:
        require_no_logins(word.partition("=")[2] or word, word.partition("=")[0])
    given = _parse(command)
    run = given.get("run_dir") or given.get("resume")
    if run is not None:
        require(
            is_uri(run) or Path(run).is_absolute(),
            f"'{run}': the cluster cannot find this run: use s3://…, or the absolute path on a disk that it shares",
        )
        return list(command)
    file = _config_file(given)
    if file is None:
        raise ValueError("CONFIG: missing: add a YAML file of this folder, or --resume RUN")
    end = [expand_home(one) for one in command].index(file) + 1  # the job expands it for its own user
    arguments = [*command[:end], *chosen.overrides(), *command[end:]]
    own = given["overrides"] or []
    try:
        settings = _load_base(command[0], file, [*chosen.overrides(), *own])
    except ValueError as error:
        _load_base(command[0], file, own)  # raises if the user's own settings are wrong
        raise ValueError(f"{error} (so the profile has it, under settings)") from error
    _require_kept(settings)
    return arguments


def _config_file(given: Mapping[str, Any]) -> str | None:
    """Return the YAML file that a command names."""
    file: str | None = given.get("config") or given.get("file")
    return file


def _load_base(command: str, file: str, overrides: Sequence[str]) -> Config:
    """Load the configuration of the run, or of a search's trials."""
    if command != "search":
        return load_config(Path(file), overrides)
    from tune.config.search_config import load_search_config  # imports Optuna, which takes a second

    return load_search_config(Path(file), overrides).base


def _parse(command: Sequence[str]) -> dict[str, Any]:
    """Parse a command of ours into its parameters, by the command's own parser."""
    from metatrain.cli import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands[command[0]].make_context(command[0], list(command[1:])).params)


def _require_kept(settings: Config) -> None:
    """Check that results lie outside the job's working directory, which is removed with the job."""
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
    """Check that the configuration is among `files`, and that no file hides one of metatrain's packages."""
    tops = {name.partition("/")[0].removesuffix(".py") for name in files if "/" in name or name.endswith(".py")}
    checkout = all(f"{package}/__init__.py" in files for package in _PACKAGES)  # of metatrain: the job uses it
    hiding = sorted(tops & set(_PACKAGES)) if not checkout else []
    require(not hiding, f"'{''.join(hiding[:1])}': this name hides metatrain's own on the cluster: rename it")
    config = _config_file(_parse(arguments))
    if config is None or "=" in config or find_config(config) in shipped_configs().values():
        return
    base = load_yaml(Path(config), "a configuration").get("base") if arguments[0] == "search" else None
    for path in [Path(config), *([Path(config).parent / base] if base is not None else [])]:
        require(
            not path.is_absolute() and ".." not in path.parts,
            f"{path}: lies outside the folder that is sent: copy it there, or set --working-dir",
        )
        reasons = (
            ".gitignore or .rayignore names it, it lies behind a link to a folder or out of this one, or it is where "
            "secrets are kept"
        )
        require(path.as_posix() in files, f"{path}: is not sent, since {reasons}: fix that")


def _enter(working_dir: Path) -> Path:
    """Change to the folder that is sent, so that paths and modules resolve as in the job."""
    require(working_dir.is_dir(), f"--working-dir: there is no folder '{working_dir}': set one that holds what is sent")
    os.chdir(working_dir)
    for path in find_clashes(Path.cwd()):  # a job's workers would take it for ours
        raise ValueError(f"--working-dir: {describe_clash(path.relative_to(Path.cwd()))}")
    sys.path.insert(0, str(Path.cwd()))
    return Path.cwd()


def _parse_variable(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    require(bool(re.fullmatch(r"[A-Za-z_]\w*", name)), f"--env: '{given[:100]}' is not NAME or NAME=VALUE: fix it")
    require(bool(equals) or name in os.environ, f"--env: {name} is not set here: use {name}=VALUE")
    return name, value if equals else os.environ[name]


def _name_job(arguments: Sequence[str]) -> str:
    """Return a name from the run that is resumed, the configuration, or the command, cut to what an id has room for."""
    run = re.search(r"\d{8}-\d{6}-(.+)-[0-9a-f]{6}/?$", next(iter(arguments[-1:]), ""))
    file = next((argument for argument in arguments[1:] if argument.endswith((".yaml", ".yml"))), arguments[0])
    name = run[1] if run else re.sub(r"[^A-Za-z0-9]+", "-", Path(file).stem).strip("-") or "job"
    return name[:_LONGEST_NAME]


def _make_id(name: str) -> str:
    valid = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) is not None and len(name) <= _LONGEST_NAME
    require(valid, f"--name: {name[:100]!r} cannot begin an id: use letters, digits, '-', '_' and '.', 1 to 61 of them")
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
