"""Jobs on a Ray cluster: sent, followed, listed and stopped through its dashboard, by the requests of Ray's jobs API.

Nothing here needs Ray itself, which takes seconds to import.
"""

import asyncio
import difflib
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

from cluster.jobs.dashboard import Dashboard, Failing, NoAnswer, Token, Unknown, reason_in
from metatrain.runs import JOB_ID
from metatrain.validation import require

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOPPED_CODE = 143
"""Of a job that was stopped: what a process ended by SIGTERM leaves with."""
NOT_RUN = {126: "cannot be run", 127: "is not there"}
"""What a shell leaves with where it cannot start a program."""
_STARTED = "Running entrypoint for job"
"""What Ray writes into a job's log as it starts the command."""
_PING_S = 20.0
_PATIENCE_S = 120.0
_PAUSE_S = 0.5
_OPEN_S = 10.0
_POLL_S = 3.0
_WORKER_COMMAND = "--python_worker_command="

Answer = TypeVar("Answer")


class ContactLost(Exception):
    """The cluster answered before, and does not any more, or knows nothing of the job; it may well go on."""


class Unreadable(Exception):
    """The cluster cannot read a job's log."""


@dataclass(frozen=True)
class Job:
    """A job as the cluster tells of it. `status`: PENDING, RUNNING or one of ENDED; times in unix seconds."""

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
        """Whether `metatrain submit` made it."""
        return "metatrain" in self.metadata

    @property
    def code(self) -> int:
        """The exit code of a job that has ended: its driver's, 128 + n of one that a signal n ended."""
        if self.status == "STOPPED":
            return STOPPED_CODE
        code = self.exit_code if self.exit_code is not None else int(self.status != "SUCCEEDED")
        return code if code >= 0 else 128 - code


class Jobs:
    """The jobs of the cluster whose dashboard is at `address`.

    ValueError: nothing answers there, something else than Ray does, or it does not accept the token.
    """

    def __init__(self, address: str, token: Token | None) -> None:
        self._dashboard = Dashboard(address, token)
        self.address = self._dashboard.address
        try:
            version = self._dashboard.get("/api/version")
        except NoAnswer as error:
            raise ValueError(
                f"{error}: is it up, and the tunnel to it (`ssh -N -L 8265:127.0.0.1:8265 HEAD`)? Name its dashboard "
                "by --address or in a profile; docs/cluster.md tells how to start one"
            ) from error
        require(isinstance(version, dict) and "ray_version" in version, self._dashboard.not_ray())

    def submit(
        self, job_id: str, command: Sequence[str], parcel: Path, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Sends the zip `parcel` as working directory, and starts `command` in it.

        `exec` makes the shell that Ray starts become the command: a signal and an exit code then are the command's.
        """
        content = parcel.read_bytes()
        package = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:40]}.zip"
        request = {
            "entrypoint": f"exec {shlex.join(command)}",
            "submission_id": job_id,
            "runtime_env": {"working_dir": f"gcs://{package}", "env_vars": {**env, JOB_ID: job_id}},
            "metadata": dict(metadata),
        }
        self._patiently(lambda: self._deliver(f"/api/packages/gcs/{package}", content))
        self._patiently(lambda: self._start(job_id, request))

    def _deliver(self, path: str, content: bytes) -> None:
        try:
            self._dashboard.get(path)  # which also keeps a package that is there from being cleared away
        except Unknown:
            self._dashboard.ask("PUT", path, content)

    def _start(self, job_id: str, request: Mapping[str, Any]) -> None:
        try:
            self._dashboard.ask("POST", "/api/jobs/", request)
        except (NoAnswer, ValueError):
            # A cluster that has just started has nobody yet to run it. Or it was taken, and only the answer was lost.
            if not any(job.id == job_id for job in self.all()):
                raise

    def interpreter(self) -> str:
        """The Python that the cluster's head runs Ray with; `python3` where it does not tell."""
        for node in self._dashboard.get("/nodes?view=summary").get("data", {}).get("summary", ()):
            if not node.get("raylet", {}).get("isHeadNode"):
                continue
            for argument in node.get("cmdline") or ():
                if argument.startswith(_WORKER_COMMAND):
                    return shlex.split(argument.removeprefix(_WORKER_COMMAND))[0]
        return "python3"

    def all(self) -> list[Job]:
        """Those that were submitted, the newest first."""
        found = [_job(plain) for plain in self._dashboard.get("/api/jobs/") if plain.get("submission_id")]
        return sorted(found, key=lambda job: job.started or 0.0, reverse=True)

    def find(self, job_id: str) -> Job:
        """The job of that id, or of the only one that begins so. ValueError: there is none."""
        jobs = self.all()
        require(job_id != "", "ID: is empty: `metatrain jobs` lists those that there are")
        exact = [job for job in jobs if job.id == job_id]
        begin_so = [job for job in jobs if job.id.startswith(job_id)]
        if exact or len(begin_so) == 1:
            return (exact or begin_so)[0]
        several = ", ".join(job.id for job in begin_so[:3])
        require(not begin_so, f"{job_id}: begins the ids of {len(begin_so)} jobs ({several}…): give more of it")
        near = difflib.get_close_matches(job_id, [job.id for job in jobs], n=1)
        guess = f"did you mean {near[0]}?" if near else "`metatrain jobs` lists those that are"
        raise ValueError(f"{job_id}: no such job at {self.address}: {guess}")

    def log(self, job_id: str) -> str:
        """What the job has said so far. Unreadable: it is not in UTF-8, or gone with its node."""
        try:
            return str(self._dashboard.get(f"{_path(job_id)}/logs")["logs"])
        except Failing as error:
            raise Unreadable(f"its log cannot be read ({error})") from error

    def stop(self, job_id: str) -> None:
        """Asks the job to end, which takes it as long as a step and a checkpoint do; `ended` waits for it."""
        self._dashboard.ask("POST", f"{_path(job_id)}/stop")

    def ended(self, job_id: str, timeout_s: float | None = None) -> Job:
        """The job once it has ended. TimeoutError. ContactLost."""
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        while (job := self._patiently(lambda: self._look(job_id))).status not in ENDED:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(job_id)
            time.sleep(_PAUSE_S)
        return job

    def follow(self, job_id: str, note: Callable[[str], None] = lambda text: None) -> Iterator[str]:
        """What the job says, from its beginning until it has ended. A connection that breaks is made again.

        note: is told why the job has not started yet, if so. ContactLost: the cluster has not answered for two minutes.
        Unreadable: at the end, what is missing of the log cannot be had.
        """
        seen, told = 0, ""
        while (job := self._patiently(lambda: self._look(job_id), note)).status not in ENDED:
            at = 0
            for piece in self._pieces(job_id) if job.status != "PENDING" else ():
                at += len(piece)
                if at > seen:
                    yield piece[seen - at :]
                    seen = at
            if job.status == "PENDING" and job.message != told:
                note(told := job.message)
            time.sleep(_PAUSE_S)
        yield self._patiently(lambda: self.log(job_id))[seen:]  # what was said after the connection had been closed

    def _look(self, job_id: str) -> Job:
        try:
            return _job(self._dashboard.get(_path(job_id)))
        except Unknown as error:
            raise ContactLost(
                f"the cluster at {self.address} knows nothing of {job_id} any more: it was started anew, and the job "
                "went with it; go on with its run, which `--resume` takes"
            ) from error

    def _pieces(self, job_id: str) -> Iterator[str]:
        """Those of `_tail`; where it gives none, behind a proxy without websockets say, all so far and a pause."""
        mute = True
        for piece in self._tail(job_id):
            mute = False
            yield piece
        if mute:
            with suppress(Unreadable):  # which is told once the job has ended
                yield self._patiently(lambda: self.log(job_id))
            time.sleep(_POLL_S)

    def _tail(self, job_id: str) -> Iterator[str]:
        """Pieces of the log as they come, from its beginning; ends with the job or the connection, by pings if mute."""

        async def opened() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
            session = aiohttp.ClientSession(headers=self._dashboard.headers)
            try:
                url = f"{self.address}{_path(job_id)}/logs/tail"
                async with asyncio.timeout(_OPEN_S):
                    return session, await session.ws_connect(url, heartbeat=_PING_S, max_msg_size=0)
            except BaseException:
                await session.close()
                raise

        with asyncio.Runner() as runner:
            try:
                session, line = runner.run(opened())
            except (OSError, TimeoutError, aiohttp.ClientError):
                return  # `follow` asks what has become of the job, and comes back where it goes on
            try:
                while (message := runner.run(line.receive())).type == aiohttp.WSMsgType.TEXT:
                    yield message.data
            finally:
                runner.run(session.close())

    def _patiently(self, ask: Callable[[], Answer], note: Callable[[str], None] = lambda text: None) -> Answer:
        """The answer, asked for again while the cluster does not answer, which `note` is told. ContactLost."""
        deadline = time.monotonic() + _PATIENCE_S
        told = False
        while True:
            try:
                return ask()
            except NoAnswer as error:
                if time.monotonic() > deadline:
                    raise ContactLost(f"{error}; a job may well go on: look again with `metatrain jobs`") from error
                if not told:
                    note(f"{error}: trying for another {deadline - time.monotonic():.0f} s")
                told = True
                time.sleep(2 * _PAUSE_S)


def why(job: Job, log: str | None) -> str | None:
    """What a person should know of a job of ours that could not even start, with the remedy; None where it could.

    log: None where it could not be read to its end, which then tells nothing.
    """
    if job.status != "FAILED" or not job.ours:
        return None
    python = job.metadata.get("python", "its Python")
    if job.exit_code in NOT_RUN:
        return (
            f"{python} {NOT_RUN[job.exit_code]} on the cluster: name the Python of its image as `python` in a profile"
        )
    if log is None:
        return None
    if "No module named metatrain" in log or "No module named 'metatrain'" in log:
        return (
            f"the cluster's Python ({python}) has no metatrain: install it there, or use an image that has it "
            "(deploy/Dockerfile), or submit from a checkout of metatrain, which is then sent along"
        )
    if job.exit_code is None and _STARTED not in log:
        return f"the cluster could not run it ({reason_in(job.message)}): see `ray job logs {job.id}` there"
    return None


def _path(job_id: str) -> str:
    return f"/api/jobs/{quote(job_id, safe='')}"


def _job(plain: Mapping[str, Any]) -> Job:
    started, ended = (plain.get(name) for name in ("start_time", "end_time"))
    return Job(
        str(plain["submission_id"]),
        str(plain["status"]),
        str(plain.get("entrypoint") or ""),
        str(plain.get("message") or ""),
        started / 1e3 if started else None,
        ended / 1e3 if ended else None,
        plain.get("driver_exit_code"),
        plain.get("metadata") or {},
    )
