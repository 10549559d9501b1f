"""A user of a remote cluster: a folder with a configuration and a profile, the token in a variable only."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command_line import CommandLine, Done
from tests.configurations import TINY
from tests.ray_head import RayHead


class Person:
    """A user with a folder and a remote cluster."""

    def __init__(self, head: RayHead, folder: Path, command: CommandLine) -> None:
        self.head, self.folder, self._command = head, folder, command
        self.runs = folder.parent / "shared" / "runs"

    def __call__(self, *arguments: str) -> Done:
        return self._command(self.folder, *arguments)

    def process(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command as a process with piped output."""
        command = [sys.executable, "-m", "metatrain", *arguments]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def submit(self, *overrides: str, follow: bool = False) -> Done:
        return self("submit", *["--follow"] * follow, "--", "train", "tiny.yaml", *overrides)

    def job(self, *overrides: str) -> str:
        done = self.submit(*overrides)
        assert done.code == 0, done.err
        return done.out.strip()

    def jobs(self) -> dict[str, dict]:
        return {job["id"]: job for job in json.loads(self("jobs", "--json").out)}


@contextmanager
def a_person(head: RayHead, room: Path) -> Iterator[Person]:
    """Yield a user with an empty home in `room`, and a profile with the cluster's address and runs.root."""
    folder = room / "project"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    profile = {"address": head.address, "token": "${LAB_TOKEN}", "settings": {"runs.root": f"{room}/shared/runs"}}
    (folder / "profiles.yaml").write_text(yaml.safe_dump({"default": "lab", "profiles": {"lab": profile}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_TOKEN", head.token)
        patch.setenv("METATRAIN_PROFILES", "profiles.yaml")  # who names the file has chosen its addresses
        patch.setenv("HOME", str(room))  # where no token lies
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        # Ray's own client would go there, whatever address it is given.
        patch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        patch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
        command = CommandLine(room)
        yield Person(head, folder, command)
        command.close()


def result_in(log: str) -> dict:
    """Return the JSON object that --json prints as the last line."""
    return json.loads(next(line for line in reversed(log.splitlines()) if line.startswith("{")))


def until(holds: Callable[[], Any], seconds: float = 120) -> Any:
    """Return what `holds` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.3)
    return found
