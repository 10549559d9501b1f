"""Runs `metatrain train …`, or goes on with the newest run that it finds in that command's runs.root.

A job that is retried after its cluster was lost starts its command again, from the beginning: as

    python resumable.py metatrain train CONFIG runs.root=s3://BUCKET/JOB …

it begins the first time and resumes every other time. Each job needs a runs.root of its own. The driver before is
presumed dead (--take-over): the operator has deleted its cluster; if it lives after all, its next write is refused.
"""

import os
import sys
from collections.abc import Sequence

from pyarrow import fs

from tasks.io.remote_fs import opened_filesystem

MARKS = ("head.json", "run.json")
"""What a folder holds that is a run, in object storage and on a disk; one without was never begun."""


def newest_run(root: str) -> str | None:
    """The last run begun under `root`, as s3://BUCKET/FOLDER; None if there is none. OSError: it cannot be read."""
    store, path = opened_filesystem(root)
    folders = store.get_file_info(fs.FileSelector(path, allow_not_found=True))
    for folder in sorted(folders, key=lambda info: info.base_name, reverse=True):  # names begin with the time
        found = store.get_file_info([f"{folder.path}/{mark}" for mark in MARKS])
        if any(info.type == fs.FileType.File for info in found):
            return f"{root.rstrip('/')}/{folder.base_name}"
    return None


def command(words: Sequence[str]) -> list[str]:
    """What to execute: `words`, or the same run's resumption. ValueError: no runs.root is among them."""
    roots = [word.partition("=")[2] for word in words if word.startswith("runs.root=")]
    if list(words[:2]) != ["metatrain", "train"] or not roots or not roots[-1].startswith("s3://"):
        raise ValueError("give a command to resume: resumable.py metatrain train CONFIG runs.root=s3://BUCKET/JOB …")
    run = newest_run(roots[-1])
    return list(words) if run is None else ["metatrain", "train", "--resume", run, "--take-over"]


if __name__ == "__main__":
    try:
        chosen = command(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"resumable: {error}\n")
        sys.exit(2)
    sys.stderr.write(f"resumable: {' '.join(chosen)}\n")
    os.execvp(chosen[0], chosen)
