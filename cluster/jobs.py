"""Jobs on a Ray cluster: sent, followed, listed and stopped through its dashboard, by Ray's own jobs API.

Every request carries the cluster's token. What goes wrong is a ValueError with the remedy where the request was wrong,
and `ContactLost` where the cluster was there and is no more.
"""

import asyncio
import difflib
import http.client
import json
import logging
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from metatrain.checks import require
from metatrain.runs import JOB_ID

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOPPED_CODE = 143
"""Of a job that was stopped: what a process ended by SIGTERM leaves with."""
NOT_RUN = {126: "cannot be run", 127: "is not there"}
"""What a shell leaves with where it cannot start a program."""
_ANSWER_S = 15.0
_QUIET_S = 60.0
_PATIENCE_S = 120.0
_PAUSE_S = 0.5
_CHATTY = ("dashboard_sdk", "job.sdk")
"""Of Ray's loggers: they tell of each upload and connection."""
_WORKER_COMMAND = "--python_worker_command="


Answer = TypeVar("Answer")


class ContactLost(Exception):
    """The cluster answered before, and does not any more; the job may well go on."""


class Token(NamedTuple):
    """A cluster's token, and where it was found, for messages."""

    text: str
    source: str


@dataclass(frozen=True)
class Job:
    """A job as the cluster tells of it. `status`: PENDING, RUNNING or one of ENDED; times in unix seconds."""

    id: str
    status: str
    entrypoint: str
    message: str
    started: float | None
    ended: float | None
    exit_code: int | None
    metadata: Mapping[str, str]

    @property
    def code(self) -> int:
        """The exit code of a job that has ended: its driver's, 128 + n of one that a signal n ended."""
        if self.status == "STOPPED":
            return STOPPED_CODE
        code = self.exit_code if self.exit_code is not None else int(self.status != "SUCCEEDED")
        return code if code >= 0 else 128 - code


class Jobs:
    """The jobs of the cluster whose dashboard is at `address`, http(s)://host:port, or host:port alone.

    ValueError: nothing answers there, something else than Ray does, or it does not accept the token.
    """

    def __init__(self, address: str, token: Token | None) -> None:
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        self._token = token
        self._headers = {"Authorization": f"Bearer {token.text}"} if token else {}
        self.ray_version = str(self._preflight().get("ray_version", "?"))
        for name in _CHATTY:
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        with self._one_line_errors():
            self._client = JobSubmissionClient(self.address, headers=dict(self._headers))

    def submit(
        self, job_id: str, command: Sequence[str], parcel: Path, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Sends the zip `parcel` as working directory, and starts `command` in it.

        `exec` makes the shell that Ray starts become the command: a signal and an exit code then are the command's.
        """
        request = {
            "entrypoint": f"exec {shlex.join(command)}",
            "submission_id": job_id,
            "runtime_env": {"working_dir": str(parcel), "env_vars": {**env, JOB_ID: job_id}},
            "metadata": dict(metadata),
        }
        deadline = time.monotonic() + _PATIENCE_S
        with self._one_line_errors():
            while not self._taken(request, last=time.monotonic() > deadline):
                time.sleep(2 * _PAUSE_S)

    def _taken(self, request: Mapping[str, Any], last: bool) -> bool:
        """Whether the cluster has the job. One that has just started has nobody yet to run it, and answers 500."""
        try:
            self._client.submit_job(**request)
        except (RuntimeError, requests.ConnectionError) as error:
            if last or not (isinstance(error, requests.ConnectionError) or "status code 50" in str(error)):
                raise
            # It may have been taken, and only the answer was lost.
            return any(job.id == request["submission_id"] for job in self._patiently(self.all))
        return True

    def interpreter(self) -> str:
        """The Python that the cluster's head runs Ray with; `python3` where it does not tell."""
        for node in self._get("/nodes?view=summary").get("data", {}).get("summary", ()):
            if not node.get("raylet", {}).get("isHeadNode"):
                continue
            for argument in node.get("cmdline") or ():
                if argument.startswith(_WORKER_COMMAND):
                    return shlex.split(argument.removeprefix(_WORKER_COMMAND))[0]
        return "python3"

    def all(self) -> list[Job]:
        """Those that were submitted, the newest first."""
        found = [_job(plain) for plain in self._get("/api/jobs/") if plain.get("submission_id")]
        return sorted(found, key=lambda job: job.started or 0.0, reverse=True)

    def find(self, job_id: str) -> Job:
        """The job of that id, or of the only one that begins so. ValueError: there is none."""
        jobs = self.all()
        exact = [job for job in jobs if job.id == job_id]
        begin_so = [job for job in jobs if job.id.startswith(job_id)] if job_id else []
        if exact or len(begin_so) == 1:
            return (exact or begin_so)[0]
        near = [job.id for job in begin_so] or difflib.get_close_matches(job_id, [job.id for job in jobs], n=1)
        guess = f"did you mean {' or '.join(near[:3])}?" if near else "`metatrain jobs` lists those that are"
        raise ValueError(f"{job_id}: no such job at {self.address}: {guess}")

    def log(self, job_id: str) -> str:
        """What the job has said so far."""
        return str(self._get(f"/api/jobs/{job_id}/logs")["logs"])

    def stop(self, job_id: str) -> None:
        """Asks the job to end, which takes it as long as a step and a checkpoint do; `ended` waits for it."""
        with self._one_line_errors():
            self._client.stop_job(job_id)

    def ended(self, job_id: str, timeout_s: float | None = None) -> Job:
        """The job once it has ended. TimeoutError."""
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        while (job := self._patiently(lambda: self.find(job_id))).status not in ENDED:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(job_id)
            time.sleep(_PAUSE_S)
        return job

    def follow(self, job_id: str) -> Iterator[str]:
        """What the job says, from its beginning until it has ended. A connection that breaks is made again.

        ContactLost: the cluster has not answered for two minutes.
        """
        seen = 0
        while (job := self._patiently(lambda: self.find(job_id))).status not in ENDED:
            at = 0
            for piece in self._tail(job_id) if job.status != "PENDING" else ():
                at += len(piece)
                if at > seen:
                    yield piece[seen - at :]
                    seen = at
            time.sleep(_PAUSE_S)
        yield self._patiently(lambda: self.log(job_id))[seen:]  # what was said after the connection had been closed

    def _tail(self, job_id: str) -> Iterator[str]:
        """Pieces of the log as they come, from its beginning; ends with the job, the connection, or long silence."""
        with asyncio.Runner() as runner:
            pieces = self._client.tail_job_logs(job_id)

            async def following() -> str:
                return await asyncio.wait_for(anext(pieces), _QUIET_S)

            while True:
                try:
                    piece = runner.run(following())
                except (StopAsyncIteration, TimeoutError, RuntimeError, OSError, aiohttp.ClientError):
                    return  # `follow` asks what has become of the job, and comes back where it goes on
                yield piece

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """The answer, asked for again while the cluster does not answer. ContactLost."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return ask()
            except ConnectionError as error:
                if time.monotonic() > deadline:
                    raise ContactLost(f"{error}; the job may well go on: look again with `metatrain jobs`") from error
                time.sleep(4 * _PAUSE_S)

    def _preflight(self) -> dict[str, Any]:
        require(
            self.address.startswith(("http://", "https://")),
            f"--address: '{self.address}' is not http://HOST:PORT of a Ray dashboard, whose port is 8265 by default: "
            "give that, or name it in a profile",
        )
        try:
            version = self._get("/api/version")
        except ConnectionError as error:
            raise ValueError(
                f"{error}: start a cluster with `ray start --head`, or give the address of its dashboard, or of a "
                "tunnel to it (--address, or a profile)"
            ) from error
        require(isinstance(version, dict) and "ray_version" in version, self._not_ray())
        return dict(version)

    def _get(self, path: str) -> Any:
        """The JSON at `path`. ConnectionError: no answer. ValueError: a refusal."""
        request = urllib.request.Request(self.address + path, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error.code, error.read(2000).decode(errors="replace")) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ConnectionError(f"no Ray cluster answers at {self.address} ({reason})") from error
        except ValueError as error:
            raise ValueError(self._not_ray()) from error

    def _refused(self, code: int, text: str) -> Exception:
        if code == 401:
            return ValueError(
                f"the cluster at {self.address} asks for a token, and none was found: put the cluster's into "
                "~/.ray/auth_token or RAY_AUTH_TOKEN, or name its file as token_file in a profile"
            )
        if code == 403:
            source = self._token.source if self._token else "nowhere"
            return ValueError(
                f"the cluster at {self.address} does not accept the token from {source}: it has another; copy the "
                "auth_token of its head"
            )
        if code >= 500:
            return ConnectionError(f"the cluster at {self.address} answers {code} ({_first_line(text)})")
        return ValueError(self._not_ray() if code == 404 else f"{self.address} answers {code} ({_first_line(text)})")

    def _not_ray(self) -> str:
        return f"what answers at {self.address} is not a Ray dashboard: give its address, whose port is 8265 by default"

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Of Ray's own client, which raises RuntimeError with the answer's text."""
        try:
            yield
        except (RuntimeError, AuthenticationError, requests.RequestException) as error:
            raise ValueError(f"the cluster at {self.address} refuses ({_first_line(str(error))})") from error


def why(job: Job, log: str) -> str | None:
    """What a person should know of a job that could not even start ours, with the remedy; None where it could."""
    if job.status != "FAILED":
        return None
    python = shlex.split(job.entrypoint.removeprefix("exec "))[0] if job.entrypoint else "python"
    if job.exit_code in NOT_RUN:
        return (
            f"{python} {NOT_RUN[job.exit_code]} on the cluster: name the Python of its image as `python` in a profile"
        )
    if "No module named metatrain" in log or "No module named 'metatrain'" in log:
        return (
            f"the cluster's Python ({python}) has no metatrain: install it there, or use an image that has it "
            "(deploy/Dockerfile), or submit from a checkout of metatrain, which is then sent along"
        )
    if job.exit_code is None:
        return f"the cluster could not run it ({_first_line(job.message)}): see `ray job logs {job.id}` there"
    return None


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


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines and lines[0].startswith("Traceback") else "".join(lines[:1]))[:300]
