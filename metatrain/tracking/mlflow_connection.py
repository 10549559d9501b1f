"""Check that MLflow can be reached and accepts our login, before a run is created.

MLflow's own first call retries for minutes, and importing it takes seconds: this module does neither.
"""

import base64
import os
import sqlite3
import ssl
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from metatrain.no_redirect import UNREDIRECTED
from metatrain.redact import mask
from tasks.io.home import expand_home

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "databricks")
"""Accepted besides http and https."""
_SQLITE = b"SQLite format 3\0"
OTHER_LOGINS = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH")


class TrackingError(ConnectionError):
    """Report that MLflow cannot be reached, or refuses. The message is one line with the remedy; `reason` is why."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


def resolve_uri(uri: str) -> str:
    """Return `uri` with an SQLite path made absolute, so that changing the folder keeps the database.

    ValueError: a folder of files, which MLflow 3 refuses, or a database in memory, which ends with the process.
    """
    scheme, separator, rest = expand_home(uri).partition(":")
    if not separator or scheme == "file":
        raise ValueError(
            f"tracking.uri={mask(uri)} names a folder, which MLflow no longer writes: use sqlite:///mlflow.db"
        )
    if scheme != "sqlite":
        return uri
    path = rest.removeprefix("///")
    if path == rest or path in ("", ":memory:"):
        raise ValueError(f"tracking.uri={mask(uri)} names no file: use sqlite:///mlflow.db")
    return f"sqlite:///{Path(path).absolute()}"


def preflight(uri: str, seconds: float = 5.0) -> None:
    """Check that `uri` names a reachable server, or a database that can be opened.

    TrackingError: no answer within `seconds`, or a status of 500 and above. ValueError: no uri that MLflow can use, a
    file for a database that is none, or a login that is missing or wrong.
    """
    uri = resolve_uri(uri)
    if not uri.startswith(("http://", "https://")):
        _check_database(uri)
        return
    address = mask(uri).rstrip("/") + "/health"
    try:
        urllib.request.urlopen(address, timeout=seconds).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            _refuse(uri, f"answers {error.code}")
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLError):
            return  # it is there; its certificate is for MLflow's own settings to judge
        _refuse(uri, f"does not answer ({cause})")
    _check_login(uri, seconds)


def check_writable(uri: str, seconds: float = 5.0) -> None:
    """Check that MLflow would take a record now. TrackingError: no answer, or a locked database, within `seconds`.

    MLflow's own calls wait for minutes: 20 s for each lock, with retries.
    """
    preflight(uri, seconds)
    database = database_of(resolve_uri(uri))
    if database is None or not database.exists():
        return
    try:
        with closing(sqlite3.connect(database, timeout=seconds, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        text = f"{database}: {error}: close what holds it, then go on with `metatrain train --resume`"
        raise TrackingError(text, reason=f"{database}: {error}") from error


def _check_login(uri: str, seconds: float) -> None:
    """Make a request that needs a login; leave logins that only MLflow itself understands to MLflow."""
    name, password, token = (os.environ.get(f"MLFLOW_TRACKING_{key}", "") for key in ("USERNAME", "PASSWORD", "TOKEN"))
    given = f"{name}:{password}".encode()
    login = f"Basic {base64.b64encode(given).decode()}" if name else f"Bearer {token}" if token else None
    if login is None and (
        any(map(os.environ.get, OTHER_LOGINS)) or Path("~/.mlflow/credentials").expanduser().exists()
    ):
        return
    address = mask(uri).rstrip("/") + "/api/2.0/mlflow/experiments/search?max_results=1"
    request = urllib.request.Request(address, headers={"Authorization": login} if login else {})
    try:
        UNREDIRECTED.open(request, timeout=seconds).close()
    except urllib.error.HTTPError as error:
        with error:
            reason = " ".join(error.read(500).decode(errors="replace").split())[:100]
        if error.code in (401, 403):
            what = f"does not accept the login of '{name or 'a token'}'" if login else "wants a login"
            raise ValueError(
                f"tracking.uri: the MLflow server at {mask(uri)} {what} ({error.code}: {reason}): set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from None
    except OSError:
        return  # it was there a moment ago: MLflow's own calls will tell


def _check_database(uri: str) -> None:
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"tracking.uri: MLflow knows no '{scheme}': use sqlite:///mlflow.db, or a server's http://")
    path = database_of(uri)
    if path is None:
        return
    above = next(folder for folder in path.parents if folder.exists())
    if path.is_dir() or not above.is_dir():
        raise ValueError(f"tracking.uri: {path} cannot be made: use sqlite:///FILE in a folder that you may write to")
    if path.exists():
        with path.open("rb") as file:
            begins = file.read(len(_SQLITE))
        if begins not in (b"", _SQLITE):
            raise ValueError(f"tracking.uri: {path} is no SQLite database: name another file, which will be made")


def _refuse(uri: str, what: str) -> NoReturn:
    raise TrackingError(
        f"the MLflow server at {mask(uri)} {what}: start it, or set tracking.uri, to sqlite:///mlflow.db say",
        reason=f"{mask(uri)} {what}",
    ) from None


def database_of(uri: str) -> Path | None:
    """Return the file of an SQLite uri, None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
