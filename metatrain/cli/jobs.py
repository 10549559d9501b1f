"""Commands `jobs`, `logs`, `stop` and `status`: look at jobs on a remote cluster and at runs, and stop jobs."""

import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from cluster.jobs.client import ENDED, ContactLost, JobClient, JobDetails, LogUnreadable, explain_failed_start
from cluster.jobs.dashboard import Unavailable
from metatrain.cli.profiles import Profile, find_token, read_profile, resolve_address
from metatrain.cli.run_status import folder_status, holds_runs, run_status, status_as_dict
from metatrain.errors import RunFailed
from metatrain.job_secrets import METADATA
from metatrain.tracking.status_line import drop_status_lines, format_duration, read_last_status
from tasks.io.remote_fs import is_uri

_RUN = re.compile(r"^(run|search) ((?:s3://|/).+)$", re.MULTILINE)
"""The line by which `metatrain train` and `search` name their folder in a log."""
_OTHER_STATUS = ("waiting for workers", "searching ", "no room for a trial")
"""Beginnings of log lines that tell the status of a job without steps."""


def jobs_command(address: str | None, profile: str | None, profiles: Path | None, as_json: bool) -> None:
    """Print the jobs of a cluster, the newest first."""
    with connect_to_jobs(address, profile, profiles) as (client, _):
        jobs = client.list_jobs()
    if as_json:
        print(json.dumps([_job_as_dict(job) for job in jobs]))
        return
    rows = [("JOB", "STATUS", "STARTED", "TOOK", "BY", "COMMAND")]
    rows += [(job.id, _format_status(job), *_format_times(job), *_user_and_command(job)) for job in jobs]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, last in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))


def logs_command(job_id: str, address: str | None, profile: str | None, profiles: Path | None, follow: bool) -> None:
    """Print the log of a job; with `follow`, until the job ends."""
    with connect_to_jobs(address, profile, profiles) as (client, _):
        job = client.find(job_id)
        if follow:
            follow_log(client, job.id)
            return
        try:
            log = client.read_log(job.id)
        except LogUnreadable as error:
            raise RunFailed(f"{job.id}: {error}") from error
        print("".join(drop_status_lines([log])), end="")
        _raise_failed_start(job, log)


def stop_command(job_id: str, address: str | None, profile: str | None, profiles: Path | None) -> None:
    """Stop a job after its step and a checkpoint, and print the command that resumes its run."""
    with connect_to_jobs(address, profile, profiles) as (client, chosen):
        job = client.find(job_id)
        wait = job.metadata.get("stop_wait", "")
        if job.status in ENDED:
            print(f"{job.id} had ended already: {_format_status(job)}")
            return
        client.stop(job.id)
        try:
            job = client.wait_until_ended(job.id, (int(wait) if wait.isdecimal() else chosen.stop_wait) + 30.0)
        except TimeoutError as error:
            raise RunFailed(f"{job.id} does not stop: see `metatrain logs {job.id}`") from error
        print(f"{job.id}: {_format_status(job)}")
        if command := _resume_command(_read_log(client, job)):
            print(command)


def status_command(
    which: str | None, address: str | None, profile: str | None, profiles: Path | None, as_json: bool, most: int = 20
) -> None:
    """Print what a job, a run, a search, the runs of a folder or every running job of the cluster is doing.

    most: of a folder's runs, how many are shown beside those that run.
    """
    several, others = which is None, 0
    if which is not None and not is_uri(which) and holds_runs(Path(which)):
        (statuses, others), several = folder_status(Path(which), most), True
    elif which is not None and (is_uri(which) or Path(which).is_dir()):
        statuses = [run_status(which)]
    else:
        with connect_to_jobs(address, profile, profiles) as (client, _):
            running = (job for job in client.list_jobs() if job.ours and job.status not in ENDED)
            statuses = [_job_status(client, job) for job in ([client.find(which)] if which is not None else running)]
    if as_json:
        print(json.dumps(statuses if several else statuses[0]))
        return
    for one in statuses:
        print(f"{one['name']}  {one['status']}  {one['line']}" + (f"  {one['run']}" if "run" in one else ""))
    if others:
        print(f"{others} older runs are not shown: --most {len(statuses) + others} shows all")
    if not statuses:
        print("no job is running")


@contextmanager
def connect_to_jobs(
    address: str | None, profile: str | None, profiles: Path | None
) -> Iterator[tuple[JobClient, Profile]]:
    """Yield a client for the cluster that the options name, and its profile; raise RunFailed if contact is lost."""
    chosen = read_profile(profile, profiles, address)
    try:
        yield JobClient(resolve_address(chosen, address), find_token(chosen)), chosen
    except (ContactLost, Unavailable) as error:
        raise RunFailed(str(error)) from error


def follow_log(client: JobClient, job_id: str) -> None:
    """Print the log until the job ends, then exit with the job's code."""
    log: list[str] = []
    complete = True
    pieces = client.follow(job_id, lambda text: print(f"waiting: {' '.join(text.split())}", file=sys.stderr))
    try:
        for piece in drop_status_lines(pieces):
            print(piece, end="", flush=True)
            log = [*log[:100], *log[100:][-100:], piece]  # its beginning and end, which name the run and the failure
    except LogUnreadable as error:
        complete = False
        print(f"{job_id}: {error}", file=sys.stderr)
    except SystemExit:
        goes_on = f"`metatrain logs {job_id} --follow` shows it, `metatrain stop {job_id}` stops it"
        print(f"\nthe job goes on: {goes_on}", file=sys.stderr)
        raise
    job = client.wait_until_ended(job_id)
    _raise_failed_start(job, "".join(log) if complete else None)
    if job.status == "FAILED" and job.exit_code is None:
        lines = [f"{job_id}: its driver was lost on the cluster ({' '.join(job.message.split())[:200]})"]
        command = _resume_command("".join(log)) or _resume_command(_read_log(client, job))
        raise RunFailed("\n".join([*lines, *filter(None, [command])]))
    print(f"job {job_id}: {_format_status(job)}", file=sys.stderr)
    if job.code:
        raise typer.Exit(job.code)


def _job_status(client: JobClient, job: JobDetails) -> dict[str, Any]:
    """Return the status of a job, by its log."""
    if job.status == "PENDING":
        return status_as_dict(job.id, job.status, None, job.message)
    try:
        log = client.read_log(job.id)
    except LogUnreadable as error:
        return status_as_dict(job.id, _format_status(job), None, str(error))
    lines = log.splitlines()
    other = next((line for line in reversed(lines) if line.startswith(_OTHER_STATUS)), "no step yet")
    run = {"run": found[-1][1]} if (found := _RUN.findall(log)) else {}
    return status_as_dict(job.id, _format_status(job), read_last_status(lines), other) | run


def _read_log(client: JobClient, job: JobDetails) -> str:
    """Return the log of a job, "" where it cannot be read."""
    try:
        return client.read_log(job.id)
    except LogUnreadable:
        return ""


def _resume_command(log: str) -> str | None:
    """Return the line that says how to go on with the last run that a log names; None where it names none."""
    found = _RUN.findall(log)
    if not found:
        return None
    kind, place = found[-1]
    command = "search" if kind == "search" else "train"
    trust = " --trust" if f"--resume {shlex.quote(place)} --trust" in log else ""
    return f"go on with `metatrain submit -- {command} --resume {shlex.quote(place)}{trust}`"


def _raise_failed_start(job: JobDetails, log: str | None) -> None:
    if reason := explain_failed_start(job, log):
        raise ValueError(f"{job.id}: {reason}")


def _job_as_dict(job: JobDetails) -> dict[str, Any]:
    ended = {"exit_code": job.code if job.ended else None}
    known = {key: text for key, text in job.metadata.items() if key != METADATA}
    return {**known, "id": job.id, "status": job.status, "started": job.started, "ended": job.ended, **ended}


def _format_status(job: JobDetails) -> str:
    return f"{job.status} ({job.code})" if job.status == "FAILED" else job.status


def _format_times(job: JobDetails) -> tuple[str, str]:
    """Return when a job started and how long it has run."""
    if job.started is None:
        return "", ""
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started))
    return began, format_duration((job.ended or time.time()) - job.started)


def _user_and_command(job: JobDetails) -> tuple[str, str]:
    return job.metadata.get("user", "?"), " ".join(job.metadata.get("command", job.entrypoint).split())
