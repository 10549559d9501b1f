"""The store and the faulty proxy that other tests stand on: a real server, real clients, real broken connections."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)

from tests.fault_proxy import FaultProxy, Faults
from tests.object_store import KEY, PAGE, REGION, ROOT, SECRET, ObjectStore, object_store

BUCKET = "bucket"
CUT = (IncompleteReadError, ResponseStreamingError)
"""Nothing of botocore retries these: the answer's head was whole."""
LOSES_THE_FIRST_ALONE = 1
"""A seed with which, of two requests of which half are lost, it is the first."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as running:
        running.make_bucket(BUCKET)
        yield running


def arrow(url: str) -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(endpoint_override=url, access_key=KEY, secret_key=SECRET, region=REGION)


def put(client: Any, key: str, body: bytes = b"here", **conditions: str) -> str:
    return client.put_object(Bucket=BUCKET, Key=key, Body=body, **conditions)["ETag"]


def get(client: Any, key: str) -> bytes:
    # Not `with ... as body`: botocore gives that the bare stream, whose errors are urllib3's own.
    with closing(client.get_object(Bucket=BUCKET, Key=key)["Body"]) as body:
        return body.read()


def get_again_until_whole(client: Any, key: str) -> bytes:
    for _ in range(10):
        try:
            return get(client, key)
        except CUT:
            continue
    raise AssertionError(f"{key} was cut ten times")


def refusal(client: Any, key: str, **conditions: str) -> tuple[int, str]:
    with pytest.raises(ClientError) as told:
        put(client, key, **conditions)
    return told.value.response["ResponseMetadata"]["HTTPStatusCode"], told.value.response["Error"]["Code"]


def test_boto3_and_pyarrow_see_the_same_objects(store: ObjectStore) -> None:
    put(store.client(), "same/of boto3/é", b"one")
    files = arrow(store.url)
    with files.open_output_stream(f"{BUCKET}/same/of arrow") as stream:
        stream.write(b"two")
    with files.open_input_stream(f"{BUCKET}/same/of boto3/é") as stream:
        assert stream.read() == b"one"
    assert get(store.client(), "same/of arrow") == b"two"
    assert store.keys(BUCKET, "same/") == ["same/of arrow", "same/of boto3/é"]


def test_keys_fill_more_than_one_page(store: ObjectStore) -> None:
    client = store.client()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: put(client, f"pages/{number:03}", b""), range(PAGE + 5)))
    assert store.keys(BUCKET, "pages/") == [f"pages/{number:03}" for number in range(PAGE + 5)]


def test_another_process_finds_the_store_by_its_environment(store: ObjectStore) -> None:
    put(store.client(), "found", b"found")
    program = "import boto3; print(boto3.client('s3').get_object(Bucket='bucket', Key='found')['Body'].read().decode())"
    done = subprocess.run(
        [sys.executable, "-c", program], env=store.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "found\n", done.stderr


def test_the_caller_s_profile_is_not_asked(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "of somebody")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert store.client().list_buckets()["Buckets"][0]["Name"] == BUCKET


def test_writes_on_a_condition(store: ObjectStore) -> None:
    client = store.client()
    first = put(client, "condition", b"1", IfNoneMatch="*")
    assert refusal(client, "condition", IfNoneMatch="*") == (412, "PreconditionFailed")
    put(client, "condition", b"2", IfMatch=first)
    assert refusal(client, "condition", IfMatch=first) == (412, "PreconditionFailed")
    assert refusal(client, "condition of nothing", IfMatch=first) == (404, "NoSuchKey")
    assert get(client, "condition") == b"2"


@pytest.mark.parametrize("condition", ["IfNoneMatch", "IfMatch"])
def test_of_many_writers_one_wins(store: ObjectStore, condition: str) -> None:
    client, writers = store.client(), 16

    def race(key: str) -> int:
        wanted = "*" if condition == "IfNoneMatch" else put(client, key, b"before")
        together = threading.Barrier(writers)

        def write(number: int) -> bool:
            together.wait()
            try:
                put(client, key, bytes([number]), **{condition: wanted})
            except ClientError as told:
                assert told.response["Error"]["Code"] == "PreconditionFailed", told
                return False
            return True

        return sum(threads.map(write, range(writers)))

    with ThreadPoolExecutor(writers) as threads:
        assert [race(f"{condition}/{number}") for number in range(10)] == [1] * 10


def test_faults_are_survived(store: ObjectStore) -> None:
    faults = Faults(refuse=0.06, lose=0.05, cut=0.05, stall=0.04, stall_seconds=0.1)
    contents = {f"mixed/{number}": b"%d" % number * 1000 for number in range(100)}
    with FaultProxy(store.url, faults, seed=1) as proxy, ThreadPoolExecutor(16) as threads:
        client = store.client(proxy.url, attempts=12)
        list(threads.map(lambda item: put(client, *item), contents.items()))
        read = list(threads.map(lambda key: get_again_until_whole(client, key), contents))
        assert read == list(contents.values())
        assert {request.fault for request in proxy.requests()} == {"", "refuse", "lose", "cut", "stall"}
        client.close()
    assert store.keys(BUCKET, "mixed/") == sorted(contents)


def test_pyarrow_through_the_proxy(store: ObjectStore) -> None:
    with FaultProxy(store.url, Faults(refuse=0.1, lose=0.1), seed=2) as proxy:
        files = arrow(proxy.url)
        for number in range(4):
            with files.open_output_stream(f"{BUCKET}/arrow/{number}") as stream:
                stream.write(b"%d" % number * 100_000)
        assert {request.fault for request in proxy.requests()} > {""}
    assert [len(get(store.client(), f"arrow/{number}")) for number in range(4)] == [100_000] * 4


def test_a_lost_write_is_done(store: ObjectStore) -> None:
    with FaultProxy(store.url, Faults(lose=1.0), seed=0) as proxy:
        with pytest.raises(ConnectionClosedError):
            put(store.client(proxy.url), "lost", b"done")
        assert proxy.requests() == [("PUT", f"/{BUCKET}/lost", "lose", 200)]
    assert get(store.client(), "lost") == b"done"


@pytest.mark.parametrize("condition", ["IfNoneMatch", "IfMatch"])
def test_a_lost_write_on_a_condition_is_refused_when_it_is_tried_again(store: ObjectStore, condition: str) -> None:
    """The client's own second attempt meets the object of its first: 412 does not mean that another writer won."""
    key = f"lost/{condition}"
    wanted = "*" if condition == "IfNoneMatch" else put(store.client(), key, b"before")
    with FaultProxy(store.url, Faults(lose=0.5), seed=LOSES_THE_FIRST_ALONE) as proxy:
        client = store.client(proxy.url, attempts=12)
        assert refusal(client, key, **{condition: wanted}) == (412, "PreconditionFailed")
        assert [(request.fault, request.status) for request in proxy.requests()] == [("lose", 200), ("", 412)]
        client.close()
    assert get(store.client(), key) == b"here"


def test_a_cut_body_is_noticed(store: ObjectStore) -> None:
    put(store.client(), "cut", b"x" * 1000)
    with FaultProxy(store.url, Faults(cut=1.0), seed=0) as proxy:
        client = store.client(proxy.url, attempts=12)
        with pytest.raises(CUT):
            get(client, "cut")
        assert [request.fault for request in proxy.requests()] == ["cut"]
        # An answer without a body has no half.
        put(client, "cut")
        client.close()


def test_a_refused_write_is_not_done(store: ObjectStore) -> None:
    with FaultProxy(store.url, Faults(refuse=1.0), seed=0) as proxy:
        client = store.client(proxy.url)
        assert {refusal(client, "refused") for _ in range(20)} == {(503, "SlowDown"), (500, "InternalError")}
        proxy.faults = Faults()
        client.head_bucket(Bucket=BUCKET)
        with pytest.raises(ClientError, match="404"):
            client.head_object(Bucket=BUCKET, Key="refused")
        client.close()


def test_the_same_seed_gives_the_same_faults(store: ObjectStore) -> None:
    def faults(seed: int) -> list[tuple[str, int]]:
        mixed = Faults(refuse=0.2, lose=0.2, cut=0.2, stall=0.2, stall_seconds=0)
        with FaultProxy(store.url, mixed, seed) as proxy:
            client = store.client(proxy.url)
            for _ in range(30):
                try:
                    client.list_objects_v2(Bucket=BUCKET, Prefix="none")
                except (ClientError, HTTPClientError):
                    continue
            client.close()
            return [(request.fault, request.status) for request in proxy.requests()]

    first = faults(3)
    assert len(first) == 30
    assert first == faults(3) != faults(4)


def test_connections_are_kept(store: ObjectStore) -> None:
    with FaultProxy(store.url, Faults(), seed=0) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
        head = {"Authorization": f"AWS4-HMAC-SHA256 Credential=testing/20250101/{REGION}/s3/aws4_request"}
        connection.request("PUT", f"/{BUCKET}/kept", iter([b"in ", b"chunks"]), head, encode_chunked=True)
        assert connection.getresponse().read() == b""
        ours = connection.sock
        connection.request("HEAD", f"/{BUCKET}/kept?none=1", headers=head)
        answer = connection.getresponse()
        assert (answer.read(), answer.headers["Content-Length"]) == (b"", "9")
        assert connection.sock is ours
        connection.close()
        assert proxy.requests()[-1] == ("HEAD", f"/{BUCKET}/kept", "", 200)
    assert get(store.client(), "kept") == b"in chunks"


def test_the_proxy_is_a_process_too(store: ObjectStore, tmp_path: Path) -> None:
    ports, log = tmp_path / "port", tmp_path / "log"
    command = [sys.executable, "-m", "tests.fault_proxy", "--target", store.url, "--seed", "0", "--lose", "1"]
    with subprocess.Popen([*command, "--port-file", ports, "--log", log], cwd=ROOT) as proxy:
        deadline = time.monotonic() + 30
        while not ports.exists():
            assert proxy.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(ConnectionClosedError):
            put(store.client(f"http://127.0.0.1:{ports.read_text()}"), "process")
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(10) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == [{"method": "PUT", "path": f"/{BUCKET}/process", "fault": "lose", "status": 200}]
