"""Describe what a process runs on, and who started it."""

import getpass
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from metatrain.redact import mask

JOB_ID = "METATRAIN_JOB_ID"
"""In the environment of a job on a cluster: its id, by which its runs are found."""
JOB_USER = "METATRAIN_USER"
"""In the environment of a job on a cluster: who submitted it."""
VERSIONED = ("metatrain", "torch", "torchvision", "numpy", "pyarrow", "ray", "mlflow")


def current_user() -> str:
    """Return the user who runs this process, or who submitted its job."""
    if (submitter := os.environ.get(JOB_USER)) is not None:
        return submitter
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def describe_environment() -> dict[str, Any]:
    """Return Python, platform, CPU, package versions, git state of the working directory, command line and job id."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count()},
        "versions": _versions(),
        "git": _git(),
        "command": [mask(word) for word in sys.argv],
        "job": os.environ.get(JOB_ID),
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1] if model else platform.processor()


def _versions() -> dict[str, str]:
    versions = {}
    for package in VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> dict[str, Any] | None:
    """Return {"revision", "dirty"}; None outside a repository, before its first commit, or without git."""
    try:
        revision = _output("git", "rev-parse", "HEAD")
        return {"revision": revision, "dirty": bool(_output("git", "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
