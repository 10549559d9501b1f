"""Run `metatrain train …`, or resume the newest run in that command's runs.root, for jobs that are retried.

A job that is retried after its cluster was lost starts its command again. As

    python resumable.py metatrain train CONFIG runs.root=s3://BUCKET/JOB …

it begins a run the first time and resumes it afterwards. Each job needs a runs.root of its own. The previous driver is
assumed dead (--take-over), as the operator has deleted its cluster; if it still lives, its next write is refused. The
run was made on a machine that is gone, so that this one does not know it for its own: runs.root is trusted (--trust).
"""

import os
import sys
from collections.abc import Sequence

from pyarrow import fs

from tasks.io.remote_fs import open_filesystem

MARKS = ("head.json", "run.json")
"""Files of which a run's folder has one, in object storage or on a disk; a folder with neither is no run."""


def newest_run(root: str) -> str | None:
    """Return the newest run under `root`, as s3://BUCKET/FOLDER; None without one. OSError: `root` is unreadable."""
    store, path = open_filesystem(root)
    folders = store.get_file_info(fs.FileSelector(path, allow_not_found=True))
    for folder in sorted(folders, key=lambda info: info.base_name, reverse=True):  # names begin with the time
        found = store.get_file_info([f"{folder.path}/{mark}" for mark in MARKS])
        if any(info.type == fs.FileType.File for info in found):
            return f"{root.rstrip('/')}/{folder.base_name}"
    return None


def choose_command(words: Sequence[str]) -> list[str]:
    """Return `words`, or the command that resumes their run. ValueError: they name no runs.root in S3."""
    roots = [word.partition("=")[2] for word in words if word.startswith("runs.root=")]
    if list(words[:2]) != ["metatrain", "train"] or not roots or not roots[-1].startswith("s3://"):
        raise ValueError("use it with a command: resumable.py metatrain train CONFIG runs.root=s3://BUCKET/JOB …")
    run = newest_run(roots[-1])
    return list(words) if run is None else ["metatrain", "train", "--resume", run, "--take-over", "--trust"]


if __name__ == "__main__":
    try:
        chosen = choose_command(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"resumable: {error}\n")
        sys.exit(2)
    sys.stderr.write(f"resumable: {' '.join(chosen)}\n")
    os.execvp(chosen[0], chosen)
