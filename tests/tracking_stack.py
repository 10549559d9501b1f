"""The tracking server of deploy/tracking, as processes of this machine instead of containers.

What runs is read from compose.yaml: commands, environments, configuration files and health checks, with variables put
in. Hosts, ports and paths are other ones here, and the S3 store is moto's.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
import pytest
import yaml

from tests.object_store import KEY, SECRET, ObjectStore, free_port, object_store

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "deploy" / "tracking" / "compose.yaml"
VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?P<how>:[-?])?(?P<rest>[^}]*)\})")
OURS = ("AWS_", "MLFLOW_", "POSTGRES_", "PG")
"""What a service is told by its own environment, and not by that of the tests."""


class TrackingStack(NamedTuple):
    uri: str
    user: str
    password: str
    s3: ObjectStore
    database: str
    """As psycopg2.connect takes it."""
    made: str
    """What the service that makes the buckets has printed."""

    def environment(self) -> dict[str, str]:
        """What a process needs in order to log in; no key of the S3 store, which MLflow alone has."""
        return {"MLFLOW_TRACKING_USERNAME": self.user, "MLFLOW_TRACKING_PASSWORD": self.password}

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What PostgreSQL itself answers."""
        with psycopg2.connect(self.database) as connection, connection.cursor() as cursor:
            cursor.execute(query, values)
            found = cursor.fetchall()
        connection.close()
        return found


class Service(NamedTuple):
    command: list[str]
    health: list[str]
    environment: dict[str, str]

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        """In a session of its own, since servers have workers."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, cwd=log.parent,
            )  # fmt: skip

    def wait(self, server: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
        """Until its health check passes."""
        deadline = time.monotonic() + seconds
        while subprocess.run(self.health, env=self.environment, capture_output=True).returncode != 0:
            assert server.poll() is None, f"{self.command[0]} has left with {server.returncode}: {log.read_text()}"
            assert time.monotonic() < deadline, f"{self.command} is not healthy after {seconds} s: {log.read_text()}"
            time.sleep(0.1)


def compose(variables: Mapping[str, str], file: Path = COMPOSE) -> dict[str, Any]:
    """The file as Compose reads it. LookupError: a variable is missing that has to be there."""
    return _filled(yaml.safe_load(file.read_text()), variables)


def service(document: Mapping[str, Any], name: str, folder: Path, places: Mapping[str, str]) -> Service:
    """One of the services, its configuration files in `folder`, and each of `places` put where its key was."""
    described = document["services"][name]
    places = {**places, "/etc/metatrain/": f"{folder}/"}
    for config in described.get("configs", ()):
        source = document["configs"][config["source"]]
        text = source["content"] if "content" in source else (COMPOSE.parent / source["file"]).read_text()
        (folder / Path(config["target"]).name).write_text(_placed(text, places))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment |= {name: _placed(str(value), places) for name, value in described["environment"].items()}
    command = [*described.get("entrypoint", ()), *described.get("command", ())]
    health = described.get("healthcheck", {"test": ["CMD"]})["test"][1:]
    return Service(_runnable(command, places), _runnable(health, places), environment)


@contextmanager
def tracking_stack(scratch: Path) -> Iterator[TrackingStack]:
    """All of it, logs in `scratch`. Skips, and says why, where PostgreSQL is not installed."""
    port = free_port()
    variables = {
        "POSTGRES_PASSWORD": secrets.token_hex(24), "MLFLOW_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_ADMIN_USERNAME": "ada", "MLFLOW_ADMIN_PASSWORD": secrets.token_hex(12),
        "S3_ACCESS_KEY_ID": KEY, "S3_SECRET_ACCESS_KEY": SECRET,
        "MLFLOW_HOSTS": f"127.0.0.1:{port}", "MLFLOW_ORIGINS": "https://mlflow.example.org",
        "MLFLOW_WORKERS": "1",
    }  # fmt: skip
    document = compose(variables)
    with postgres(document, scratch) as database, object_store(scratch) as store:
        places = {
            "@postgres:5432/": f"@127.0.0.1:{database.split('port=')[1].split()[0]}/",
            "http://store:8333": store.url,
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=5000": f"--port={port}",
            "127.0.0.1:5000": f"127.0.0.1:{port}",
        }
        mlflow, log = service(document, "mlflow", scratch, places), scratch / "mlflow.log"
        with running(mlflow, log) as server:
            made = made_buckets(service(document, "buckets", scratch, places))
            mlflow.wait(server, log)
            user, password = variables["MLFLOW_ADMIN_USERNAME"], variables["MLFLOW_ADMIN_PASSWORD"]
            yield TrackingStack(f"http://127.0.0.1:{port}", user, password, store, database, made)


@contextmanager
def running(which: Service, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Started, and all of its session ended; not yet healthy."""
    server = which.start(log)
    try:
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def made_buckets(buckets: Service) -> str:
    done = subprocess.run(buckets.command, env=buckets.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def postgres(document: Mapping[str, Any], scratch: Path) -> Iterator[str]:
    """A new server with the user and the database that its service names; what it holds is gone with it."""
    binaries, user = _postgres_binaries(), _postgres_user()
    settings = document["services"]["postgres"]["environment"]
    port, log = free_port(), scratch / "postgres.log"
    folder = Path(tempfile.mkdtemp(prefix="metatrain-postgres-"))  # pytest's own folders are closed to other users
    (folder / "password").write_text(settings["POSTGRES_PASSWORD"])
    if user is not None:
        shutil.chown(folder, user)
        shutil.chown(folder / "password", user)
    own = f"--username={settings['POSTGRES_USER']}", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256"
    quick = "--no-sync", "--encoding=UTF8", "--locale=C"
    ask = ["-p", str(port), "-h", "127.0.0.1", "-c", "unix_socket_directories=", "-F"]
    try:
        with log.open("wb") as out:
            options: Any = {"user": user, "cwd": folder, "stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            subprocess.run([binaries / "initdb", "-D", folder / "data", *own, *quick], check=True, **options)
            server = subprocess.Popen([binaries / "postgres", "-D", folder / "data", *ask], **options)
        try:
            path = {"PATH": f"{binaries}:{os.environ['PATH']}", "PGPORT": str(port)}
            described = service(document, "postgres", scratch, {})
            described._replace(environment=described.environment | path).wait(server, log)
            yield _new_database(settings, port)
        finally:
            server.send_signal(signal.SIGINT)  # fast: whoever is connected is cut off
            server.wait(30)
    finally:
        shutil.rmtree(folder)


def _new_database(settings: Mapping[str, str], port: int) -> str:
    user, name = settings["POSTGRES_USER"], settings["POSTGRES_DB"]
    ask = f"host=127.0.0.1 port={port} user={user} password={settings['POSTGRES_PASSWORD']}"
    connection = psycopg2.connect(f"{ask} dbname=postgres")
    connection.autocommit = True
    connection.cursor().execute(f'CREATE DATABASE "{name}"')
    connection.close()
    return f"{ask} dbname={name}"


def _postgres_binaries() -> Path:
    """Debian keeps them off the path."""
    found = [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True))]
    first = next((Path(path) for path in found if path), None)
    if first is None:
        _skip("no PostgreSQL: initdb is not installed")
    return first.resolve().parent


def _postgres_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    if not any(entry.pw_name == "postgres" for entry in pwd.getpwall()):
        _skip("PostgreSQL does not run as root, and there is no user postgres")
    return "postgres"


def _skip(reason: str) -> None:
    print(reason)
    pytest.skip(reason)


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    """`value`, a tree, with its variables put in as Compose does it."""

    def fill(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "$"
        if found := variables.get(match["name"]):
            return found
        if match["how"] == ":?":
            raise LookupError(f"{match['name']}: {match['rest']}")
        return match["rest"] if match["how"] == ":-" else ""

    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    return VARIABLE.sub(fill, value) if isinstance(value, str) else value


def _placed(text: str, places: Mapping[str, str]) -> str:
    for key, place in places.items():
        text = text.replace(key, place)
    return text


def _runnable(command: list[str], places: Mapping[str, str]) -> list[str]:
    """With this Python, and its MLflow."""
    python = {"python": [sys.executable], "mlflow": [sys.executable, "-m", "mlflow"]}
    placed = [_placed(str(word), places) for word in command]
    return [*python.get(placed[0], placed[:1]), *placed[1:]] if placed else []
