"""Keep Ray's token from other users of this machine: Ray itself writes it for everybody to read."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from ray._private.authentication.authentication_token_generator import generate_new_authentication_token


def protect_token() -> None:
    """Make the token of local clusters as Ray would, with mode 0600, and take the rights of others from one there is.

    Does nothing where the user has chosen another token, or none; where the home cannot be written to, Ray says so.
    """
    chosen = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if chosen or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    with suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(generate_new_authentication_token())
        for one, mode in ((path, 0o600), (path.parent, 0o700)):
            status = one.lstat()
            if not stat.S_ISLNK(status.st_mode) and status.st_uid == os.getuid() and status.st_mode & 0o077:
                one.chmod(mode)
