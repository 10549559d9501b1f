"""Somebody who uses a cluster: a folder with a configuration and a profile, no token but in a variable."""

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
    """Somebody with a folder of their own and a cluster that is elsewhere."""

    def __init__(self, head: RayHead, folder: Path, command: CommandLine) -> None:
        self.head, self.folder, self._command = head, folder, command
        self.runs = folder.parent / "shared" / "runs"

    def __call__(self, *arguments: str) -> Done:
        return self._command(self.folder, *arguments)

    def process(self, *arguments: str) -> subprocess.Popen[str]:
        """The same as a process that one can listen to."""
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
    """With an empty home in `room`, and a profile that names the cluster and where runs are kept."""
    folder = room / "project"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    profile = {"address": head.address, "token": "${LAB_TOKEN}", "settings": {"runs.root": f"{room}/shared/runs"}}
    (folder / "profiles.yaml").write_text(yaml.safe_dump({"default": "lab", "profiles": {"lab": profile}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_TOKEN", head.token)
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
    """What --json made the last line."""
    return json.loads(next(line for line in reversed(log.splitlines()) if line.startswith("{")))


def until(holds: Callable[[], Any], seconds: float = 120) -> Any:
    """What `holds` gives once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.3)
    return found
