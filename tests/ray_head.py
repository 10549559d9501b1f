"""Start a one-node Ray cluster with dashboard and token by `ray start --head`; forward connections that can be cut."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.object_store import free_port

RAY = Path(sys.executable).with_name("ray")


class RayHead(NamedTuple):
    address: str
    """URL of the dashboard."""
    token: str
    metrics: str
    """URL of the metrics for Prometheus."""

    def environment(self) -> dict[str, str]:
        """Return the variables that a user of the cluster sets."""
        return {"RAY_API_SERVER_ADDRESS": self.address, "RAY_AUTH_TOKEN": self.token}


@contextmanager
def ray_head(cpus: int = 4, env: dict[str, str] | None = None) -> Iterator[RayHead]:
    """Run a cluster whose PATH has no Python of ours, as is common; `env` are variables of its machines."""
    token = secrets.token_hex(16)
    room = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets have short names only
    (room / "auth_token").write_text(token)
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port", "ray-client-server-port")
    ports = {name: free_port() for name in names}
    with (room / "out").open("wb") as out:
        process = subprocess.Popen(
            [
                *(str(RAY), "start", "--head", "--block", "--disable-usage-stats"),
                *(f"--{name}={port}" for name, port in ports.items()),
                *(f"--num-cpus={cpus}", f"--temp-dir={room}", "--object-store-memory=200000000"),
            ],
            env={
                **{name: os.environ[name] for name in ("HOME", "TMPDIR", "METATRAIN_CACHE") if name in os.environ},
                "PATH": "/usr/bin:/bin",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(room / "auth_token"),
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    head = RayHead(
        f"http://127.0.0.1:{ports['dashboard-port']}", token, f"http://127.0.0.1:{ports['metrics-export-port']}"
    )
    try:
        _wait(process, f"{head.address}/api/gcs_healthz", room / "out")
        yield head
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # all at once, for Ray's own way to end takes up to half a minute
        process.wait()
        shutil.rmtree(room, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ray start left with {process.returncode}: {log.read_text()}"
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"no Ray after {seconds} s: {log.read_text()}")


def clusters_here() -> list[int]:
    """Return the pids of the heads of all Ray clusters on this machine."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            found += [int(comm.parent.name)] if comm.read_text() == "gcs_server\n" else []
    return found


class Line:
    """Tunnel to `target` (http://HOST:PORT) that can be cut, and refuses connections while `down`."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target, self.down = (host, int(port)), False
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Break every connection; return how many there were."""
        broken, self._open = self._open, []
        for end in broken:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        return len(broken) // 2

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.down:
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    source.close()
