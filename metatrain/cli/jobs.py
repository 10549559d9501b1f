"""`metatrain submit`, `jobs`, `logs`, `stop`, `status`: runs on a cluster that is reached through its dashboard."""

import json
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metatrain import runs, standing
from metatrain.checks import require
from metatrain.cli.words import AsJson
from metatrain.config import load_config
from metatrain.failures import RunFailed
from metatrain.settings import Config
from metatrain.storage.homes import open_home
from tasks.places import is_uri

if TYPE_CHECKING:
    from cluster.jobs import Job, Jobs
    from metatrain.cli.profiles import Profile

Address = Annotated[
    str | None, typer.Option("--address", help="The cluster's dashboard, http://HOST:8265.", metavar="URL")
]
ProfileName = Annotated[str | None, typer.Option("--profile", help="Which profile of the file of profiles.")]
Profiles = Annotated[
    Path | None,
    typer.Option("--profiles", help="The file of profiles; profiles.yaml, here or in ~/.config/metatrain."),
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME[=VALUE]", help="A variable for the job; its value from here if not given."),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, or how the id of one alone begins.")]
SENT = ("train", "evaluate")
"""The commands that a cluster runs."""
_GO_ON = re.compile(r"metatrain train --resume (\S+?)`")
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"


def submit_command(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="`train CONFIG key=value…`, say.")],
    address: Address = None,
    profile: ProfileName = None,
    profiles: Profiles = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its log, and leave with its exit code.")] = False,
    working_dir: Annotated[Path, typer.Option("--working-dir", help="The folder that is sent along.")] = Path(),
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME[=VALUE]", help="For the job; VALUE from here if not given."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What its id begins with.")] = None,
) -> None:
    """Run a command on a cluster: this folder is sent there, with what of your own lies in it."""
    with _jobs(address, profile, profiles) as (jobs, chosen):
        folder = _entered(working_dir)
        arguments = _arguments(command, chosen)
        from cluster.parcel import packed

        parcel = packed(folder)
        _require_sent(arguments, parcel.files)
        job_id = _new_id(name or _stem(arguments))
        ours = {_STOP_WAIT: str(chosen.stop_wait), runs.JOB_USER: runs.user()}
        variables = {**ours, **chosen.env, **dict(map(_variable, env or []))}
        with tempfile.TemporaryDirectory(prefix="metatrain-") as aside:
            zipped = parcel.written(Path(aside) / "working_dir.zip")
            python = chosen.python or jobs.interpreter()
            jobs.submit(job_id, [python, "-m", "metatrain", *arguments], zipped, variables, _metadata(arguments))
        if not follow:
            print(job_id)
            print(f"submitted to {jobs.address}: `metatrain logs {job_id} --follow` shows it", file=sys.stderr)
            return
        print(f"job {job_id} at {jobs.address}", file=sys.stderr)
        _follow(jobs, job_id)


def jobs_command(
    address: Address = None, profile: ProfileName = None, profiles: Profiles = None, as_json: AsJson = False
) -> None:
    """The jobs of a cluster, the newest first."""
    with _jobs(address, profile, profiles) as (jobs, _):
        found = jobs.all()
    if as_json:
        print(json.dumps([_plain(job) for job in found]))
        return
    rows = [("JOB", "STATUS", "STARTED", "TOOK", "BY", "COMMAND")]
    rows += [(job.id, _status(job), *_times(job), job.metadata.get("user", "?"), _told_command(job)) for job in found]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, last in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))


def logs_command(
    job_id: JobId,
    address: Address = None,
    profile: ProfileName = None,
    profiles: Profiles = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends; leave with its exit code.")] = False,
) -> None:
    """What a job has said."""
    with _jobs(address, profile, profiles) as (jobs, _):
        job = jobs.find(job_id)
        if follow:
            _follow(jobs, job.id)
            return
        print(log := jobs.log(job.id), end="")
        _explain(job, log)


def stop_command(
    job_id: JobId, address: Address = None, profile: ProfileName = None, profiles: Profiles = None
) -> None:
    """Stop a job after its step and a checkpoint, and say how to go on with its run."""
    with _jobs(address, profile, profiles) as (jobs, chosen):
        from cluster.jobs import ENDED

        job = jobs.find(job_id)
        if job.status in ENDED:
            print(f"{job.id} had ended already: {_status(job)}")
            return
        jobs.stop(job.id)
        try:
            job = jobs.ended(job.id, chosen.stop_wait + 30.0)
        except TimeoutError as error:
            raise RunFailed(f"{job.id} does not stop: see `metatrain logs {job.id}`") from error
        print(f"{job.id}: {_status(job)}")
        if places := _GO_ON.findall(jobs.log(job.id)):
            print(f"go on with `metatrain submit -- train --resume {places[-1]}`")


def status_command(
    which: Annotated[str | None, typer.Argument(metavar="[ID|RUN]", help="A job's id, or a run's folder.")] = None,
    address: Address = None,
    profile: ProfileName = None,
    profiles: Profiles = None,
    as_json: AsJson = False,
) -> None:
    """What runs are doing: step, tasks a second, workers, best so far, time left. Without ID: all running jobs."""
    if which is not None and (is_uri(which) or Path(which).is_dir()):
        told = [_of_run(which)]
    else:
        with _jobs(address, profile, profiles) as (jobs, _):
            from cluster.jobs import ENDED

            chosen = [jobs.find(which)] if which is not None else [job for job in jobs.all() if job.status not in ENDED]
            told = [_of_job(job, jobs.log(job.id) if job.status != "PENDING" else "") for job in chosen]
    if as_json:
        print(json.dumps(told if which is None else told[0]))
        return
    for one in told:
        print(f"{one['name']}  {one['status']}  {one['line']}")
    if not told:
        print("no job is running")


def _of_run(place: str) -> dict[str, Any]:
    home = open_home(place)
    steps = load_config(home.config).outer.steps
    known = standing.of_run(home.metrics, steps)
    ended = (home.evaluations / "test.json").exists()
    return _told(home.where, "FINISHED" if ended else "as it was kept last", known)


def _of_job(job: "Job", log: str) -> dict[str, Any]:
    return _told(job.id, _status(job), standing.last_told(log.splitlines()))


def _told(name: str, status: str, known: standing.Standing | None) -> dict[str, Any]:
    line = known.line() if known is not None else "no step yet"
    return {"name": name, "status": status, "line": line} | (known.as_dict() if known is not None else {})


@contextmanager
def _jobs(address: str | None, profile: str | None, profiles: Path | None) -> "Iterator[tuple[Jobs, Profile]]":
    """The jobs of the cluster that is meant, and its profile."""
    from cluster.jobs import ContactLost, Jobs  # ray takes seconds to import
    from metatrain.cli.profiles import DEFAULT_ADDRESS, read_profile, token_of

    chosen = read_profile(profile, profiles)
    where = address or chosen.address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    try:
        yield Jobs(where, token_of(chosen)), chosen
    except (ContactLost, ConnectionError) as error:
        raise RunFailed(str(error)) from error


def _follow(jobs: "Jobs", job_id: str) -> None:
    """Shows the log to its end, then leaves with the job's exit code."""
    log: list[str] = []
    try:
        for piece in jobs.follow(job_id):
            print(piece, end="", flush=True)
            log = [*log[-20:], piece]
        job = jobs.ended(job_id)
    except SystemExit:
        print(
            f"\nthe job goes on: `metatrain logs {job_id} --follow` shows it, `metatrain stop {job_id}` stops it",
            file=sys.stderr,
        )
        raise
    _explain(job, "".join(log))
    print(f"job {job_id}: {_status(job)}", file=sys.stderr)
    if job.code:
        raise typer.Exit(job.code)


def _explain(job: "Job", log: str) -> None:
    from cluster.jobs import why

    if reason := why(job, log):
        raise ValueError(f"{job.id}: {reason}")


def _arguments(command: Sequence[str], chosen: "Profile") -> list[str]:
    """What the cluster runs: `command`, the profile's settings before its own; what can be checked here, is."""
    require(bool(command) and command[0] in SENT, f"COMMAND: a cluster runs {' and '.join(SENT)}: begin with one")
    if command[0] != "train":
        return list(command)
    given = _parsed(command)
    if given["resume"] is not None or given["config"] is None:
        require(given["resume"] is None or is_uri(given["resume"]) or Path(given["resume"]).is_absolute(), _LASTING)
        return list(command)
    at = command.index(given["config"])
    arguments = [*command[: at + 1], *chosen.overrides(), *command[at + 1 :]]
    overrides = [*chosen.overrides(), *(given["overrides"] or [])]
    _require_lasting(load_config(Path(given["config"]), overrides))
    return arguments


def _parsed(command: Sequence[str]) -> dict[str, Any]:
    """The parameters of `metatrain train`, by name, as its own parser reads them."""
    from metatrain.cli import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands[command[0]].make_context(command[0], list(command[1:])).params)


_LASTING = "--resume: a run on a cluster is named by s3://…, or by the absolute path of a disk that it shares"


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


def _require_sent(arguments: Sequence[str], files: dict[str, int]) -> None:
    """The configuration must be among what is sent."""
    if arguments[0] != "train" or (config := _parsed(arguments)["config"]) is None or "=" in config:
        return
    path = Path(config)
    require(
        not path.is_absolute() and ".." not in path.parts,
        f"{config}: lies outside the folder that is sent: copy it there, or give --working-dir",
    )
    require(path.as_posix() in files, f"{config}: is not sent, since .gitignore or .rayignore names it: take it out")


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
    named = next((argument for argument in arguments[1:] if argument.endswith((".yaml", ".yml"))), arguments[0])
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(named).stem).strip("-") or "job"


def _new_id(name: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}", name) is not None
    require(plain, f"--name: {name[:100]!r} cannot begin an id: use letters, digits, '-', '_' and '.', 1 to 61 of them")
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _metadata(arguments: Sequence[str]) -> dict[str, str]:
    return {"metatrain": version("metatrain"), "user": runs.user(), "command": " ".join(arguments)}


def _plain(job: "Job") -> dict[str, Any]:
    ended = {"exit_code": job.code if job.ended else None}
    return {"id": job.id, "status": job.status, "started": job.started, "ended": job.ended, **ended, **job.metadata}


def _status(job: "Job") -> str:
    return f"{job.status} ({job.code})" if job.status == "FAILED" else job.status


def _times(job: "Job") -> tuple[str, str]:
    if job.started is None:
        return "", ""
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started))
    return began, standing.duration((job.ended or time.time()) - job.started)


def _told_command(job: "Job") -> str:
    return job.metadata.get("command", job.entrypoint)


def add_to(app: typer.Typer) -> None:
    """Makes these commands of `app`."""
    commands: dict[str, Callable[..., None]] = {
        "submit": submit_command,
        "jobs": jobs_command,
        "logs": logs_command,
        "stop": stop_command,
        "status": status_command,
    }
    for name, command in commands.items():
        app.command(name)(command)
