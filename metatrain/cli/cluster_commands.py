"""Define the commands that run others on a cluster and look after them: their arguments, options and help."""

from pathlib import Path
from typing import Annotated

import typer

from metatrain.cli.arguments import Address, AsJson, Env, JobId, ProfileName, Profiles, expand_paths


def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="`train CONFIG key=value…`, say.")],
    address: Address = None,
    profile: ProfileName = None,
    profiles: Profiles = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its log, and leave with its exit code.")] = False,
    working_dir: Annotated[
        Path, typer.Option("--working-dir", help="The folder that is sent along.", callback=expand_paths)
    ] = Path(),
    env: Env = None,
    name: Annotated[str | None, typer.Option("--name", help="What its id begins with.")] = None,
) -> None:
    """Run a command on a cluster: this folder is sent there, with your own modules in it."""
    from metatrain.cli.submission import submit_command

    submit_command(command, address, profile, profiles, follow, working_dir, env or [], name)


def jobs(
    address: Address = None, profile: ProfileName = None, profiles: Profiles = None, as_json: AsJson = False
) -> None:
    """List the jobs of a cluster, the newest first."""
    from metatrain.cli.jobs import jobs_command

    jobs_command(address, profile, profiles, as_json)


def status(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID|RUN|FOLDER]", help="A job's id, a run's folder, or a folder of runs.", callback=expand_paths
        ),
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, help="Of a folder of runs, how many to show: those that run, then the newest.")
    ] = 20,
    address: Address = None,
    profile: ProfileName = None,
    profiles: Profiles = None,
    as_json: AsJson = False,
) -> None:
    """Show what runs are doing: step, tasks a second, workers, best so far, time left. Without ID: all running jobs."""
    from metatrain.cli.jobs import status_command

    status_command(which, address, profile, profiles, as_json, most)


def logs(
    job_id: JobId,
    address: Address = None,
    profile: ProfileName = None,
    profiles: Profiles = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends; leave with its exit code.")] = False,
) -> None:
    """Print a job's log."""
    from metatrain.cli.jobs import logs_command

    logs_command(job_id, address, profile, profiles, follow)


def stop(job_id: JobId, address: Address = None, profile: ProfileName = None, profiles: Profiles = None) -> None:
    """Stop a job after its step and a checkpoint, and print the command that resumes its run."""
    from metatrain.cli.jobs import stop_command

    stop_command(job_id, address, profile, profiles)
