"""Serve pictures from an object store behind a fault proxy, for the tests of task data behind URIs."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.sources.image_folder import ImageFolder
from tasks.sources.mini_imagenet import MiniImageNet
from tasks.sources.omniglot import Omniglot
from tasks.store.cache import cache_root
from tasks.types import no_progress
from tests import pictures
from tests.fault_proxy import FaultProxy, Faults, Request
from tests.object_store import ObjectStore, object_store

NAMES = [f"class_{number}" for number in range(6)]


@contextmanager
def serve_pictures(scratch: Path) -> Iterator[ObjectStore]:
    """Run an object store with pictures of six classes in s3://raw/classes."""
    with object_store(scratch) as store:
        for bucket in ("raw", "damaged"):
            store.make_bucket(bucket)
        upload(store, "raw", "classes", pictures.class_files(NAMES))
        yield store


@contextmanager
def connect_through_proxy(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Put a proxy between this process and the server, without faults until a test sets them."""
    with FaultProxy(server.url, Faults(), 7) as between:
        for name, value in server.environment(between.url).items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        yield between


def upload(server: ObjectStore, bucket: str, prefix: str, contents: dict[str, bytes]) -> None:
    client = server.client()
    for name, content in contents.items():
        client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)


def deny_action(server: ObjectStore, bucket: str, action: str) -> None:
    """Make a bucket with one file below x/ in which `action` is denied."""
    rule = {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": f"arn:aws:s3:::{bucket}/*"}
    server.make_bucket(bucket)
    server.client().delete_bucket_policy(Bucket=bucket)
    upload(server, bucket, "x", {"0.png": b"no"})
    server.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))


def fail_if_built(done: int, total: int) -> None:
    raise AssertionError("nothing is built here")


def images(root: Path | str, cache: str | None = None) -> ImageFolder:
    return ImageFolder(root=str(root), cache=cache, size=pictures.SIDE)


def find_gets(proxy: FaultProxy, end: str) -> list[Request]:
    return [request for request in proxy.requests() if request.method == "GET" and request.path.endswith(end)]


def prepare_error(source: Omniglot | ImageFolder | MiniImageNet) -> str:
    """Return the message of a source that fails: one line, at once, with no store left behind."""
    begun = time.monotonic()
    with pytest.raises((ValueError, OSError)) as error:
        source.prepare(no_progress)
    assert "\n" not in str(error.value)
    assert time.monotonic() - begun < 8
    assert not list(cache_root(None).rglob("*.arrow"))
    return str(error.value)
