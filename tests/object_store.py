"""Run moto's S3 server as a process on this machine; its content is lost when it ends.

Run as `python -m tests.object_store ARGUMENTS`, it is `python -m moto.server ARGUMENTS`, one request at a time.
"""

import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import botocore.session
from botocore.config import Config

ROOT = Path(__file__).parents[1]
REGION, KEY, SECRET = "us-east-1", "testing", "testing"
PAGE = 100
"""Keys in one answer: a tenth of what S3 gives, so that tests soon meet a second page."""


class ObjectStore(NamedTuple):
    url: str

    def environment(self, url: str | None = None) -> dict[str, str]:
        """Return the variables by which a process finds this store, or a proxy of it at `url`."""
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, url: str | None = None, attempts: int = 1) -> Any:
        """Return a client of this store, or of a proxy of it at `url`, independent of the environment and files."""
        unset = {"profile": (None, None, None, None)}
        no_file = dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))
        return boto3.Session(botocore_session=botocore.session.Session(session_vars=unset | no_file)).client(
            "s3",
            endpoint_url=url or self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name=REGION,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": attempts},
                connect_timeout=5,
                read_timeout=5,
                max_pool_connections=32,
                proxies={},
            ),
        )

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return all keys, sorted, from all pages."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))


@contextmanager
def object_store(scratch: Path) -> Iterator[ObjectStore]:
    """Run a server whose log goes to `scratch`."""
    port = free_port()
    log = scratch / f"object-store-{port}.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.object_store", "-H", "127.0.0.1", "-p", str(port)],
            cwd=ROOT,
            env=os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        store = ObjectStore(f"http://127.0.0.1:{port}")
        _wait(store, server, log)
        yield store
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(store: ObjectStore, server: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the object store exited with {server.returncode}: {log.read_text()}"
        try:
            with direct.open(f"{store.url}/moto-api/data.json", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the object store does not answer after {seconds} s: {log.read_text()}")


def serve() -> None:
    """Run moto.server, but with requests one at a time.

    moto checks whether a key exists, and then writes it, without a lock: two writers with If-None-Match can both
    succeed, and some of its threads race and answer 500.
    """
    import threading

    from moto import server

    application, lock = server.DomainDispatcherApplication, threading.Lock()
    answer: Callable[..., Any] = application.__call__

    def one_at_a_time(self: Any, environ: dict[str, Any], start_response: Any) -> Any:
        # The body is read before the lock is taken: a client that stops in the middle of it blocks no other.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        chunked = environ.get("wsgi.input_terminated", False)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(*([] if chunked else [length])))
        with lock:
            return answer(self, environ, start_response)

    application.__call__ = one_at_a_time
    server.main()


if __name__ == "__main__":
    serve()
