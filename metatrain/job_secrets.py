"""Hand secret variables to the processes of a job, past Ray's runtime environment.

Ray writes the variables of a runtime environment into a log of every node and into the command line of every process.
Secret ones travel in the job's metadata instead, which requests with the cluster's token alone can read: the driver
takes them out of there before Ray starts, and gives them to its actors as arguments.
"""

import json
import os
from collections.abc import Iterable, Mapping

from metatrain.redact import is_secret

METADATA = "metatrain_env"
"""The key of a job's metadata that holds its secret variables, as JSON."""
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable in which Ray gives a job's metadata to its driver."""
_NAMES = "METATRAIN_SECRETS"
"""The variable that lists the names of the secret ones."""


def split_secrets(variables: Mapping[str, str], named: Iterable[str] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables that may be logged, and those that are secret or `named`."""
    known = set(named)
    secrets = {name: text for name, text in variables.items() if name in known or is_secret(name, text)}
    return {name: text for name, text in variables.items() if name not in secrets}, secrets


def take_secrets() -> None:
    """Move the secret variables of a job from its metadata to the environment, if this process is its driver."""
    if _JOB_CONFIG not in os.environ:
        return
    config = json.loads(os.environ[_JOB_CONFIG])
    secrets = config.get("metadata", {}).pop(METADATA, None)
    if secrets is not None:
        os.environ[_JOB_CONFIG] = json.dumps(config)
        adopt_secrets(json.loads(secrets))


def held_secrets() -> dict[str, str]:
    """Return the secret variables of this process, for the processes that it starts."""
    names = filter(None, os.environ.get(_NAMES, "").split(","))
    return {name: os.environ[name] for name in names if name in os.environ}


def adopt_secrets(secrets: Mapping[str, str]) -> None:
    """Set the secret variables that the driver holds in this process."""
    if secrets:
        os.environ.update(secrets)
        os.environ[_NAMES] = ",".join(secrets)
