"""Create, open and lock runs, in a folder on a disk or in S3."""

from metatrain.runs.environment import JOB_ID, JOB_USER, VERSIONED, current_user, describe_environment
from metatrain.runs.locations import create_run, create_run_at, is_search, open_run, release_run, run_exists
from metatrain.runs.lock import find_owner, lock_run
from metatrain.runs.run import FORMAT, Run, RunStorage, new_run_id, replace_text, write_json
from metatrain.runs.signature import is_own

__all__ = [
    "FORMAT",
    "JOB_ID",
    "JOB_USER",
    "VERSIONED",
    "Run",
    "RunStorage",
    "create_run",
    "create_run_at",
    "current_user",
    "describe_environment",
    "find_owner",
    "is_own",
    "is_search",
    "lock_run",
    "new_run_id",
    "open_run",
    "release_run",
    "replace_text",
    "run_exists",
    "write_json",
]
