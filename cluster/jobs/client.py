"""Submit, list, follow and stop jobs through the jobs API of a Ray dashboard.

Does not import Ray, which takes seconds.
"""

import asyncio
import hashlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp

from cluster.jobs.dashboard import Dashboard, NotFound, ServerError, Token, Unavailable, summarize_error
from metatrain.runs import JOB_ID
from metatrain.validation import require
from tasks.plugins import suggest_name

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOPPED_CODE = 143
"""Exit code of a stopped job: that of a process ended by SIGTERM."""
NOT_RUN = {126: "cannot be run", 127: "is not there"}
"""A shell's exit codes for a program that does not start."""
_STARTED = "Running entrypoint for job"
"""The line that Ray writes into a job's log when it starts the command."""
_PING_S = 20.0
_RETRY_S = 120.0
_PAUSE_S = 0.5
_OPEN_S = 10.0
_POLL_S = 3.0
_WORKER_COMMAND = "--python_worker_command="

Answer = TypeVar("Answer")


class ContactLost(Exception):
    """The cluster no longer answers, or no longer knows the job, which may still run."""


class LogUnreadable(Exception):
    """The cluster cannot return a job's log."""


@dataclass(frozen=True)
class JobDetails:
    """A job as the cluster describes it; `status`: PENDING, RUNNING or one of ENDED; times in unix seconds."""

    id: str
    status: str
    entrypoint: str = ""
    message: str = ""
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Tell whether `metatrain submit` made it."""
        return "metatrain" in self.metadata

    @property
    def code(self) -> int:
        """Return the exit code of an ended job: its driver's, or 128 + n after signal n."""
        if self.status == "STOPPED":
            return STOPPED_CODE
        code = self.exit_code if self.exit_code is not None else int(self.status != "SUCCEEDED")
        return code if code >= 0 else 128 - code


class JobClient:
    """Client for the jobs of the cluster whose dashboard is at `address`.

    ValueError: nothing answers there, or something other than Ray, or the token is refused.
    """

    def __init__(self, address: str, token: Token | None) -> None:
        self._dashboard = Dashboard(address, token)
        self.address = self._dashboard.address
        try:
            version = self._dashboard.get("/api/version")
        except Unavailable as error:
            raise ValueError(
                f"{error}: is it up, and the tunnel to it (`ssh -N -L 8265:127.0.0.1:8265 HEAD`)? Set its dashboard by "
                "--address or in a profile; docs/cluster.md shows how to start one"
            ) from error
        require(isinstance(version, dict) and "ray_version" in version, self._dashboard.not_ray())

    def submit(
        self, job_id: str, command: Sequence[str], archive: Path, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Upload the zip `archive` as working directory, and start `command` in it.

        `exec` replaces the shell that Ray starts by the command, so that signals and exit codes are the command's.
        """
        content = archive.read_bytes()
        package = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:40]}.zip"
        job = {
            "entrypoint": f"exec {shlex.join(command)}",
            "submission_id": job_id,
            "runtime_env": {"working_dir": f"gcs://{package}", "env_vars": {**env, JOB_ID: job_id}},
            "metadata": dict(metadata),
        }
        self._retry(lambda: self._upload(f"/api/packages/gcs/{package}", content))
        self._retry(lambda: self._start(job_id, job))

    def _upload(self, path: str, content: bytes) -> None:
        try:
            self._dashboard.get(path)  # also keeps an existing package from being deleted
        except NotFound:
            self._dashboard.request("PUT", path, content)

    def _start(self, job_id: str, job: Mapping[str, Any]) -> None:
        try:
            self._dashboard.request("POST", "/api/jobs/", job)
        except (Unavailable, ValueError):
            # A cluster that has just started may refuse jobs. Or the job was accepted, and only the answer was lost.
            if not any(job.id == job_id for job in self.list_jobs()):
                raise

    def interpreter(self) -> str:
        """Return the Python that the cluster's head runs Ray with; `python3` where it is not known."""
        for node in self._dashboard.get("/nodes?view=summary").get("data", {}).get("summary", ()):
            if not node.get("raylet", {}).get("isHeadNode"):
                continue
            for argument in node.get("cmdline") or ():
                if argument.startswith(_WORKER_COMMAND):
                    return shlex.split(argument.removeprefix(_WORKER_COMMAND))[0]
        return "python3"

    def list_jobs(self) -> list[JobDetails]:
        """Return the submitted jobs, the newest first."""
        jobs = [_parse_job(plain) for plain in self._dashboard.get("/api/jobs/") if plain.get("submission_id")]
        return sorted(jobs, key=lambda job: job.started or 0.0, reverse=True)

    def find(self, job_id: str) -> JobDetails:
        """Return the job with that id, or the only one whose id begins so. ValueError: there is none."""
        jobs = self.list_jobs()
        require(job_id != "", "ID: is empty: use one that `metatrain jobs` lists")
        exact = [job for job in jobs if job.id == job_id]
        matches = [job for job in jobs if job.id.startswith(job_id)]
        if exact or len(matches) == 1:
            return (exact or matches)[0]
        several = ", ".join(job.id for job in matches[:3])
        require(not matches, f"{job_id}: begins the ids of {len(matches)} jobs ({several}…): use more of the id")
        guess = suggest_name(job_id, [job.id for job in jobs])
        raise ValueError(f"{job_id}: no such job at {self.address}{guess}: `metatrain jobs` lists those that exist")

    def read_log(self, job_id: str) -> str:
        """Return the log so far. LogUnreadable: it is not UTF-8, or was lost with its node."""
        try:
            return str(self._dashboard.get(f"{_job_path(job_id)}/logs")["logs"])
        except ServerError as error:
            raise LogUnreadable(f"its log cannot be read ({error})") from error

    def stop(self, job_id: str) -> None:
        """Request the job to end, after its step and a checkpoint; `wait_until_ended` waits for that."""
        self._dashboard.request("POST", f"{_job_path(job_id)}/stop")

    def wait_until_ended(self, job_id: str, timeout_s: float | None = None) -> JobDetails:
        """Return the job once it has ended. Raises TimeoutError, ContactLost."""
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        while (job := self._retry(lambda: self._get_job(job_id))).status not in ENDED:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(job_id)
            time.sleep(_PAUSE_S)
        return job

    def follow(self, job_id: str, note: Callable[[str], None] = lambda text: None) -> Iterator[str]:
        """Yield the log piece by piece until the job has ended, reconnecting where a connection breaks.

        note: called with the reason why the job has not started yet. Raises ContactLost when the cluster has not
        answered for two minutes, and at the end LogUnreadable when the rest of the log cannot be read.
        """
        seen, noted = 0, ""
        while (job := self._retry(lambda: self._get_job(job_id), note)).status not in ENDED:
            at = 0
            for piece in self._read_pieces(job_id) if job.status != "PENDING" else ():
                at += len(piece)
                if at > seen:
                    yield piece[seen - at :]
                    seen = at
            if job.status == "PENDING" and job.message != noted:
                note(noted := job.message)
            time.sleep(_PAUSE_S)
        yield self._retry(lambda: self.read_log(job_id))[seen:]  # what was written after the connection had closed

    def _get_job(self, job_id: str) -> JobDetails:
        try:
            return _parse_job(self._dashboard.get(_job_path(job_id)))
        except NotFound as error:
            raise ContactLost(
                f"the cluster at {self.address} no longer knows {job_id}: it was restarted, and the job is lost; go on "
                "with its run by `--resume`"
            ) from error

    def _read_pieces(self, job_id: str) -> Iterator[str]:
        """Yield the log from its beginning by websocket; without one (behind a proxy), the log so far at once."""
        empty = True
        for piece in self._stream_log(job_id):
            empty = False
            yield piece
        if empty:
            with suppress(LogUnreadable):  # raised again once the job has ended
                yield self._retry(lambda: self.read_log(job_id))
            time.sleep(_POLL_S)

    def _stream_log(self, job_id: str) -> Iterator[str]:
        """Yield pieces of the log from its beginning as they come, until the job ends or the connection breaks."""

        async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
            session = aiohttp.ClientSession(headers=self._dashboard.headers)
            try:
                url = f"{self.address}{_job_path(job_id)}/logs/tail"
                async with asyncio.timeout(_OPEN_S):
                    return session, await session.ws_connect(url, heartbeat=_PING_S, max_msg_size=0)
            except BaseException:
                await session.close()
                raise

        with asyncio.Runner() as runner:
            try:
                session, socket = runner.run(connect())
            except (OSError, TimeoutError, aiohttp.ClientError):
                return  # `follow` asks for the job's status, and calls again while it runs
            try:
                while (message := runner.run(socket.receive())).type == aiohttp.WSMsgType.TEXT:
                    yield message.data
            finally:
                runner.run(session.close())

    def _retry(self, request: Callable[[], Answer], note: Callable[[str], None] = lambda text: None) -> Answer:
        """Return the answer, retrying while the cluster does not answer, of which `note` is told. ContactLost."""
        deadline = time.monotonic() + _RETRY_S
        noted = False
        while True:
            try:
                return request()
            except Unavailable as error:
                if time.monotonic() > deadline:
                    raise ContactLost(f"{error}; the job may still run: look again with `metatrain jobs`") from error
                if not noted:
                    note(f"{error}: trying for another {deadline - time.monotonic():.0f} s")
                noted = True
                time.sleep(2 * _PAUSE_S)


def explain_failed_start(job: JobDetails, log: str | None) -> str | None:
    """Return why a job of ours did not start, with the remedy; None where it did, or where the log does not tell.

    log: None where it could not be read to its end.
    """
    if job.status != "FAILED" or not job.ours:
        return None
    python = job.metadata.get("python", "its Python")
    if job.exit_code in NOT_RUN:
        return f"{python} {NOT_RUN[job.exit_code]} on the cluster: set `python` in a profile to that of its image"
    if log is None:
        return None
    if "No module named metatrain" in log or "No module named 'metatrain'" in log:
        return (
            f"the cluster's Python ({python}) has no metatrain: install it there, or use an image that has it "
            "(deploy/Dockerfile), or submit from a checkout of metatrain, which is then sent along"
        )
    if job.exit_code is None and _STARTED not in log:
        return f"the cluster could not run it ({summarize_error(job.message)}): see `ray job logs {job.id}` there"
    return None


def _job_path(job_id: str) -> str:
    return f"/api/jobs/{quote(job_id, safe='')}"


def _parse_job(plain: Mapping[str, Any]) -> JobDetails:
    started, ended = (plain.get(name) for name in ("start_time", "end_time"))
    return JobDetails(
        str(plain["submission_id"]),
        str(plain["status"]),
        str(plain.get("entrypoint") or ""),
        str(plain.get("message") or ""),
        started / 1e3 if started else None,
        ended / 1e3 if ended else None,
        plain.get("driver_exit_code"),
        plain.get("metadata") or {},
    )
