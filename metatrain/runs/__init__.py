"""Run folders: what a run keeps, who owns it, and where it lies, on a disk or in object storage."""

from metatrain.runs.environment import JOB_ID, JOB_USER, VERSIONED, environment, user
from metatrain.runs.lock import own, owner
from metatrain.runs.run import FORMAT, Run, Storage, create, fresh_id, make, open_run, replace_text, write_json

__all__ = [
    "FORMAT",
    "JOB_ID",
    "JOB_USER",
    "VERSIONED",
    "Run",
    "Storage",
    "create",
    "environment",
    "fresh_id",
    "make",
    "open_run",
    "own",
    "owner",
    "replace_text",
    "user",
    "write_json",
]
