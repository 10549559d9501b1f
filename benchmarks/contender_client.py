"""Start a contender in its own process and exchange lines with it, with a time limit for each answer."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_GOODBYE_S = 30.0
"""Seconds to wait for a process to end; a Ray cluster takes several."""


class ContenderError(Exception):
    """Signal that a contender failed; the message is one line with the reason."""


class ContenderClient:
    """Client of `python -m benchmarks.contender_process ARGUMENTS`. ContenderError: not ready within `limit` "
    "seconds."""

    def __init__(self, *arguments: str, limit: float) -> None:
        command = [sys.executable, "-m", "benchmarks.contender_process", *arguments]
        # Ray workers import our modules too, whatever their working directory.
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        self._limit = limit
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._answer()
        except ContenderError:
            self.stop()
            raise

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and return the answer. ContenderError: an error, an ended process or no answer in time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ContenderError(self._end()) from error
        return self._answer()

    def stop(self) -> None:
        """Stop the process and its children. It may be called twice."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        for end in (None, signal.SIGTERM, signal.SIGKILL):
            if end is not None:
                os.killpg(self._process.pid, end)
            try:
                self._process.wait(_GOODBYE_S)
                break
            except subprocess.TimeoutExpired:
                continue
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        # One line per request, so that no answer is left in a buffer that select does not see.
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], self._limit)[0]:
            raise ContenderError(f"no answer in {self._limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise ContenderError(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise ContenderError(answer["failed"])
        return answer

    def _end(self) -> str:
        code = self._process.wait(_GOODBYE_S)
        return f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
