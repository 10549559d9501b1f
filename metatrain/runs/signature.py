"""Sign the configuration of a run with a key of its user, so that a run from elsewhere is told from one's own.

A run folder made here holds `signature`, the HMAC-SHA256 of its config.yaml with a key that lies outside of all runs:
METATRAIN_STATE, else XDG_STATE_HOME/metatrain, else ~/.local/state/metatrain. Whoever writes a run for others to open
has not that key. A run without a signature, or with another user's or machine's, is not one's own.
"""

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from tasks.io.atomic import atomic_write
from tasks.io.files import read_document

STATE = "METATRAIN_STATE"
"""Variable that names the folder of the key."""
SIGNATURE = "signature"
_SCHEME = "hmac-sha256"
_PURPOSE = b"metatrain config.yaml\0"
_KEY_BYTES = 32


def sign_config(folder: Path) -> None:
    """Write the signature of the config.yaml in `folder`; none where this user has no place for a key."""
    with suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
        made = _sign((folder / "config.yaml").read_bytes(), _key(create=True))
        with atomic_write(folder / SIGNATURE) as temporary:
            temporary.write_text(f"{made}\n", encoding="ascii")


def is_own(folder: Path) -> bool:
    """Return whether the run or search in `folder` was made by this user, with the config.yaml that it has now."""
    try:
        found = read_document(folder / SIGNATURE, limit=200).strip()
        made = _sign(read_document(folder / "config.yaml"), _key(create=False))
    except (OSError, RuntimeError, ValueError):  # ValueError: no plain file, or too large
        return False
    return hmac.compare_digest(found, made.encode())


def _sign(config: bytes, key: bytes) -> str:
    return f"{_SCHEME} {hmac.new(key, _PURPOSE + config, hashlib.sha256).hexdigest()}"


def _key(create: bool) -> bytes:
    """Return this user's key. OSError: there is none, or it cannot be made."""
    folder = Path(os.environ.get(STATE) or Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "metatrain")
    path = folder.expanduser() / "key"
    if create and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = path.with_name(f"key.{secrets.token_hex(4)}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
            with suppress(FileExistsError):  # another process was quicker: its key stands
                os.link(aside, path)
        except PermissionError:  # a file system without hard links
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise OSError(f"{path}: is not a key: remove it")
    return key
