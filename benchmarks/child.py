"""The parent's end of a contestant: a process that is asked in lines and answers in lines, within a time."""

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
"""A Ray cluster takes seconds to stop."""


class Failed(Exception):
    """A contestant could not do what it was asked; the message is one line that says why."""


class Child:
    """`python -m benchmarks.contestant ARGUMENTS`, ready. Failed: it is not, within `limit` seconds."""

    def __init__(self, *arguments: str, limit: float) -> None:
        command = [sys.executable, "-m", "benchmarks.contestant", *arguments]
        # Workers of a cluster import our modules too, from wherever they are started.
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
        except Failed:
            self.stop()
            raise

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to a line. Failed: an error, an end or silence instead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Failed(self._end()) from error
        return self._answer()

    def stop(self) -> None:
        """Ends it, and what it started. Calling it twice does no harm."""
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
        # One line for each that is asked, so that nothing of it can lie in a buffer that select does not see.
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], self._limit)[0]:
            raise Failed(f"no answer in {self._limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def _end(self) -> str:
        code = self._process.wait(_GOODBYE_S)
        return f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
