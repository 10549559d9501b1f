"""Create the buckets named on the command line, and check that the S3 server supports conditional writes.

A run in S3 has one owner because a write with `If-None-Match: *` or `If-Match` is refused once another driver has
written. A server that ignores these headers, or checks them before it writes, would let two drivers write one run.
So several writers try at once. The server and login are read from the AWS_… variables.
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
    """Create and check the buckets; exit with a message if conditional writes do not hold."""
    if not buckets:
        sys.exit("usage: buckets.py BUCKET...")
    store = boto3.client("s3", config=Config(max_pool_connections=WRITERS))
    for bucket in buckets:
        create_bucket(store, bucket)
    for _ in range(ROUNDS):
        check_conditional_writes(store, buckets[-1])
    sys.stdout.write(f"{', '.join(buckets)}: made; of {WRITERS} conditional writes at once, one is taken\n")


def create_bucket(store: Any, bucket: str) -> None:
    """Create `bucket` unless it exists."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        store.create_bucket(Bucket=bucket, **place)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
    store.head_bucket(Bucket=bucket)


def check_conditional_writes(store: Any, bucket: str) -> None:
    """Check that one of several writers wins with each condition: the key is absent, the key is unchanged."""
    key = f".conditional-writes-{uuid.uuid4().hex}"
    try:
        require_one_winner(store, bucket, key, {"IfNoneMatch": "*"})
        require_one_winner(store, bucket, key, {"IfMatch": store.head_object(Bucket=bucket, Key=key)["ETag"]})
    finally:
        store.delete_object(Bucket=bucket, Key=key)


def require_one_winner(store: Any, bucket: str, key: str, condition: Condition) -> None:
    """Exit with a message unless exactly one of WRITERS simultaneous writes succeeds."""
    barrier = Barrier(WRITERS)

    def write(_: int) -> bool:
        barrier.wait()
        try:  # different bytes, so that one write changes the ETag for the others
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
