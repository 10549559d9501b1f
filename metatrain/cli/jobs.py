"""`metatrain jobs`, `logs`, `stop`, `status`: runs on a cluster that is reached through its dashboard."""

import json
import math
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from metatrain import runs
from metatrain.config.load import load_config
from metatrain.errors import RunFailed
from metatrain.runs.locations import is_search, open_home
from metatrain.tracking import status_line
from tasks.io.remote_fs import is_uri

if TYPE_CHECKING:
    from cluster.jobs.client import Job, Jobs
    from metatrain.cli.profiles import Profile

_RUN = re.compile(r"^(run|search) ((?:s3://|/).+)$", re.MULTILINE)
"""How `metatrain train` and `search` name what they begin or go on with."""
_INSTEAD = ("waiting for workers", "searching ", "no room for a trial")
"""How lines begin that tell of something else than steps."""


def jobs_command(address: str | None, profile: str | None, profiles: Path | None, as_json: bool) -> None:
    """Print the jobs of a cluster, the newest first."""
    with connected_jobs(address, profile, profiles) as (jobs, _):
        found = jobs.all()
    if as_json:
        print(json.dumps([_plain(job) for job in found]))
        return
    rows = [("JOB", "STATUS", "STARTED", "TOOK", "BY", "COMMAND")]
    rows += [(job.id, _status(job), *_times(job), job.metadata.get("user", "?"), _told_command(job)) for job in found]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, last in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))


def logs_command(job_id: str, address: str | None, profile: str | None, profiles: Path | None, follow: bool) -> None:
    """Print the log of a job; with `follow`, until the job ends."""
    from cluster.jobs.client import Unreadable

    with connected_jobs(address, profile, profiles) as (jobs, _):
        job = jobs.find(job_id)
        if follow:
            shown(jobs, job.id)
            return
        try:
            print(log := jobs.log(job.id), end="")
        except Unreadable as error:
            raise RunFailed(f"{job.id}: {error}") from error
        _explain(job, log)


def stop_command(job_id: str, address: str | None, profile: str | None, profiles: Path | None) -> None:
    """Stop a job after its step and a checkpoint, and print the command that resumes its run."""
    with connected_jobs(address, profile, profiles) as (jobs, chosen):
        from cluster.jobs.client import ENDED

        job = jobs.find(job_id)
        wait = job.metadata.get("stop_wait", "")
        if job.status in ENDED:
            print(f"{job.id} had ended already: {_status(job)}")
            return
        jobs.stop(job.id)
        try:
            job = jobs.ended(job.id, (int(wait) if wait.isdecimal() else chosen.stop_wait) + 30.0)
        except TimeoutError as error:
            raise RunFailed(f"{job.id} does not stop: see `metatrain logs {job.id}`") from error
        print(f"{job.id}: {_status(job)}")
        if told := _go_on(_readable(jobs, job)):
            print(told)


def status_command(
    which: str | None, address: str | None, profile: str | None, profiles: Path | None, as_json: bool
) -> None:
    """Print what a job, a run, a search or every running job of the cluster is doing."""
    if which is not None and (is_uri(which) or Path(which).is_dir()):
        told = [_of_run(which)]
    else:
        with connected_jobs(address, profile, profiles) as (jobs, _):
            from cluster.jobs.client import ENDED

            running = (job for job in jobs.all() if job.ours and job.status not in ENDED)
            told = [_of_job(jobs, job) for job in ([jobs.find(which)] if which is not None else running)]
    if as_json:
        print(json.dumps(told if which is None else told[0]))
        return
    for one in told:
        print(f"{one['name']}  {one['status']}  {one['line']}" + (f"  {one['run']}" if "run" in one else ""))
    if not told:
        print("no job is running")


def _of_run(place: str) -> dict[str, Any]:
    home = open_home(place)
    if is_search(home):
        return _of_search(home)
    known = status_line.of_run(home.metrics, load_config(home.config).outer.steps)
    owner = runs.owner(home)
    status = "FINISHED" if known is not None and known.tested else f"RUNNING ({owner})" if owner else "NOT RUNNING"
    return _told(home.where, status, known)


def _of_search(home: runs.Run) -> dict[str, Any]:
    from tune.config.search_config import load_search_config
    from tune.monitor import SearchStatus
    from tune.report.collect import collect

    story, owner = collect(home), runs.owner(home)
    spent = 0.0 if math.isnan(story.spent) else story.spent
    line = SearchStatus(story.history, load_search_config(home.config), spent).text()
    return {"name": home.where, "status": f"RUNNING ({owner})" if owner else "NOT RUNNING", "line": line}


def _of_job(jobs: "Jobs", job: "Job") -> dict[str, Any]:
    from cluster.jobs.client import Unreadable

    if job.status == "PENDING":
        return _told(job.id, job.status, None, job.message)
    try:
        log = jobs.log(job.id)
        lines = log.splitlines()
        waits = next((line for line in reversed(lines) if line.startswith(_INSTEAD)), "no step yet")
        run = {"run": named[-1][1]} if (named := _RUN.findall(log)) else {}
        return _told(job.id, _status(job), status_line.last_told(lines), waits) | run
    except Unreadable as error:
        return _told(job.id, _status(job), None, str(error))


def _told(name: str, status: str, known: status_line.Standing | None, instead: str = "no step yet") -> dict[str, Any]:
    line = known.line() if known is not None else " ".join(instead.split())
    return {"name": name, "status": status, "line": line} | (known.as_dict() if known is not None else {})


@contextmanager
def connected_jobs(address: str | None, profile: str | None, profiles: Path | None) -> "Iterator[tuple[Jobs, Profile]]":
    """The jobs of the cluster that is meant, and its profile."""
    from cluster.jobs.client import ContactLost, Jobs
    from cluster.jobs.dashboard import NoAnswer
    from metatrain.cli.profiles import address_of, read_profile, token_of

    chosen = read_profile(profile, profiles, address)
    try:
        yield Jobs(address_of(chosen, address), token_of(chosen)), chosen
    except (ContactLost, NoAnswer) as error:
        raise RunFailed(str(error)) from error


def shown(jobs: "Jobs", job_id: str) -> None:
    """Shows the log to its end, then leaves with the job's exit code."""
    from cluster.jobs.client import Unreadable

    log: list[str] = []
    whole = True
    try:
        for piece in jobs.follow(job_id, lambda text: print(f"waiting: {' '.join(text.split())}", file=sys.stderr)):
            print(piece, end="", flush=True)
            log = [*log[:2], *log[2:][-20:], piece]  # its beginning and its end say why it came to grief
    except Unreadable as error:
        whole = False
        print(f"{job_id}: {error}", file=sys.stderr)
    except SystemExit:
        print(
            f"\nthe job goes on: `metatrain logs {job_id} --follow` shows it, `metatrain stop {job_id}` stops it",
            file=sys.stderr,
        )
        raise
    job = jobs.ended(job_id)
    _explain(job, "".join(log) if whole else None)
    if job.status == "FAILED" and job.exit_code is None:
        told = [f"{job_id}: its driver was lost on the cluster ({' '.join(job.message.split())[:200]})"]
        raise RunFailed("\n".join([*told, *filter(None, [_go_on("".join(log)) or _go_on(_readable(jobs, job))])]))
    print(f"job {job_id}: {_status(job)}", file=sys.stderr)
    if job.code:
        raise typer.Exit(job.code)


def _readable(jobs: "Jobs", job: "Job") -> str:
    """What can be had of a job's log."""
    from cluster.jobs.client import Unreadable

    try:
        return jobs.log(job.id)
    except Unreadable:
        return ""


def _go_on(log: str) -> str | None:
    """The command that goes on with the run of a job that has begun one."""
    named = _RUN.findall(log)
    if not named:
        return None
    word, place = named[-1]
    command = "search" if word == "search" else "train"
    return f"go on with `metatrain submit -- {command} --resume {shlex.quote(place)}`"


def _explain(job: "Job", log: str | None) -> None:
    from cluster.jobs.client import why

    if reason := why(job, log):
        raise ValueError(f"{job.id}: {reason}")


def _plain(job: "Job") -> dict[str, Any]:
    ended = {"exit_code": job.code if job.ended else None}
    return {**job.metadata, "id": job.id, "status": job.status, "started": job.started, "ended": job.ended, **ended}


def _status(job: "Job") -> str:
    return f"{job.status} ({job.code})" if job.status == "FAILED" else job.status


def _times(job: "Job") -> tuple[str, str]:
    if job.started is None:
        return "", ""
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started))
    return began, status_line.duration((job.ended or time.time()) - job.started)


def _told_command(job: "Job") -> str:
    return " ".join(job.metadata.get("command", job.entrypoint).split())
