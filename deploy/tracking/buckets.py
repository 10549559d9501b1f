"""Makes the buckets named on the command line, and refuses a store that cannot keep what runs rely on.

A run in S3 has one owner because a write with `If-None-Match: *` or `If-Match` is refused once another driver has
written. A server that ignores these headers, or looks first and writes later, would let two drivers write one run.
So each is tried, with several writers at once. What S3 to write to is read from the AWS_… variables.
"""

import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

WRITERS = 8
ROUNDS = 5
REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
Condition = dict[str, str]


def main(buckets: list[str]) -> None:
    """Exits with a line that says what is wrong, and 0 where each bucket is there and conditions hold."""
    if not buckets:
        sys.exit("usage: buckets.py BUCKET...")
    store = boto3.client("s3", config=Config(max_pool_connections=WRITERS))
    for bucket in buckets:
        make(store, bucket)
    for _ in range(ROUNDS):
        check(store, buckets[-1])
    sys.stdout.write(f"{', '.join(buckets)}: made; of {WRITERS} conditional writes at once, one is taken\n")


def make(store: Any, bucket: str) -> None:
    """The bucket is there afterwards, whoever made it."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        store.create_bucket(Bucket=bucket, **place)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
    store.head_bucket(Bucket=bucket)


def check(store: Any, bucket: str) -> None:
    """One of several writers wins where the key is absent, and one where it has to be as it was."""
    key = f".conditional-writes-{uuid.uuid4().hex}"
    try:
        require_one(store, bucket, key, {"IfNoneMatch": "*"})
        require_one(store, bucket, key, {"IfMatch": store.head_object(Bucket=bucket, Key=key)["ETag"]})
    finally:
        store.delete_object(Bucket=bucket, Key=key)


def require_one(store: Any, bucket: str, key: str, condition: Condition) -> None:
    """Exits where another number than one of the writers is told that its version stands."""
    together = Barrier(WRITERS)

    def write(_: int) -> bool:
        together.wait()
        try:  # each its own bytes, so that what one has written no longer matches for the others
            store.put_object(Bucket=bucket, Key=key, Body=uuid.uuid4().bytes, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] not in REFUSED:
                raise
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        taken = sum(pool.map(write, range(WRITERS)))
    if taken != 1:
        sys.exit(
            f"of {WRITERS} writes at once with {', '.join(condition)} {taken} were taken: this S3 server cannot hold "
            "runs; see which do in deploy/tracking/compose.yaml"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
