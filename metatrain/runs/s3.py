"""Read and write objects in S3, or in a compatible store: the only module that imports boto3.

Credentials, region and endpoint come from the usual AWS_… variables and files. Requests are tried again with growing
pauses. A failure is a StorageError of one line, with the remedy.
"""

import os
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import IncompleteReadError as CutShort
from botocore.exceptions import ReadTimeoutError as Stalled

from tasks.io.remote_fs import check_listening

ATTEMPTS = 8
_READ_ATTEMPTS = 6


class StorageError(OSError):
    """Report that the object storage failed. The message names the cause and the remedy."""


class _Truncated(StorageError):
    """Report that an answer was cut short or did not come."""


class PreconditionFailed(Exception):
    """Report that a conditional write found another version than the one it named."""


class Content(NamedTuple):
    """An object: its bytes, its version's tag, and how old that version is in seconds, by the server's own clock."""

    body: bytes
    etag: str
    age: float


class S3Folder:
    """The objects under `s3://name/prefix/`."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.uri = uri.rstrip("/")
        self.name, self.prefix = parts.netloc, parts.path.strip("/")
        if parts.scheme != "s3" or not self.name or not self.prefix:
            raise ValueError(f"{uri}: runs are kept on disks and in s3://BUCKET/FOLDER: use one of these")
        with self._translate_errors():
            retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
            config = Config(retries=retries, connect_timeout=5, read_timeout=20)
            self._client: Any = boto3.session.Session().client("s3", config=config)

    def check_reachable(self) -> None:
        """Return once the bucket has answered. Raise StorageError, soon, without endpoint, bucket or access."""
        self._check_endpoint()
        with self._translate_errors():
            self._client.list_objects_v2(Bucket=self.name, Prefix=f"{self.prefix}/", MaxKeys=1)

    def get(self, key: str) -> Content | None:
        """Return the object called `key`, None where there is none. Retry an answer that is cut short."""
        for cut in range(_READ_ATTEMPTS):
            try:
                with self._translate_errors():
                    answer = self._client.get_object(Bucket=self.name, Key=self._key(key))
                    with closing(answer["Body"]) as body:
                        return Content(body.read(), answer["ETag"], _age(answer))
            except FileNotFoundError:
                return None
            except _Truncated:
                time.sleep(random.uniform(0, 0.2 * 2**cut))
        raise StorageError(f"{self.uri}/{key} was cut short {_READ_ATTEMPTS} times: try again on a better network")

    def put(self, key: str, body: bytes, replacing: str | None) -> str:
        """Write the object if its tag is still `replacing`, or None if there is none yet; return the new tag.

        Raise PreconditionFailed where another wrote it, or our first attempt succeeded but its answer was lost.
        """
        condition = {"IfNoneMatch": "*"} if replacing is None else {"IfMatch": replacing}
        try:
            with self._translate_errors():
                answer = self._client.put_object(Bucket=self.name, Key=self._key(key), Body=body, **condition)
                return str(answer["ETag"])
        except FileNotFoundError as error:
            raise PreconditionFailed from error

    def upload(self, path: Path, key: str) -> None:
        """Upload a file of any size as the object called `key`."""
        with self._translate_errors():
            self._client.upload_file(str(path), self.name, self._key(key))

    def download(self, key: str, path: Path) -> bool:
        """Download the object called `key` to `path`; return False, and write nothing, where there is none."""
        try:
            with self._translate_errors():
                self._client.download_file(self.name, self._key(key), str(path))
        except FileNotFoundError:
            return False
        except _Truncated as error:
            raise StorageError(f"{self.uri}/{key} was cut short: try again on a better network") from error
        return True

    def remove(self, key: str) -> None:
        """Remove an object, if it exists."""
        with self._translate_errors():
            self._client.delete_object(Bucket=self.name, Key=self._key(key))

    def keys(self) -> Iterator[str]:
        """Yield the keys of all objects."""
        with self._translate_errors():
            start = f"{self.prefix}/"
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=start):
                yield from (item["Key"].removeprefix(start) for item in page.get("Contents", ()))

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}"

    def _check_endpoint(self) -> None:
        """Connect once, within seconds: boto3 retries for a minute where nothing listens."""
        proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"))
        try:
            if not proxied:
                check_listening(self._client.meta.endpoint_url)
        except ConnectionError as error:
            raise self._unreachable_error(str(error)) from error

    def _unreachable_error(self, reason: str) -> StorageError:
        url = self._client.meta.endpoint_url
        return StorageError(f"{self.uri}: no answer from {url} ({reason}): set AWS_ENDPOINT_URL, or fix the network")

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            raise StorageError(f"{self.uri}: there are no credentials for it: {remedy}") from error
        except (CutShort, ResponseStreamingError, Stalled) as error:
            raise _Truncated(f"{self.uri}: an answer was cut short or did not come: try again") from error
        except (EndpointConnectionError, ConnectTimeoutError) as error:
            raise self._unreachable_error(type(error).__name__) from error
        except ClientError as error:
            raise self._client_error(error) from error
        except (BotoCoreError, S3UploadFailedError) as error:
            if isinstance(error.__context__, ClientError):
                raise self._client_error(error.__context__) from error
            raise StorageError(f"{self.uri}: {' '.join(str(error).split())}: try again") from error

    def _client_error(self, error: ClientError) -> Exception:
        """Return the error that stands for a refused request."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in ("PreconditionFailed", "ConditionalRequestConflict") or status in (409, 412):
            return PreconditionFailed()
        if code == "NoSuchBucket":
            return StorageError(f"{self.uri}: there is no bucket '{self.name}': create it, or name another")
        if code in ("NoSuchKey", "404"):
            return FileNotFoundError(code)
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "AuthFailure"):
            return StorageError(f"{self.uri}: the credentials are not valid ({code}): renew the AWS_… variables")
        if status in (401, 403):
            remedy = f"use credentials with s3:ListBucket, GetObject, PutObject and DeleteObject on '{self.name}'"
            return StorageError(f"{self.uri}: access is denied: {remedy}")
        return StorageError(f"{self.uri}: {code or status} after {ATTEMPTS} attempts: try again")


def _age(answer: Any) -> float:
    """Return seconds since the last change, by the server's clock alone: the local clock may be wrong."""
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    modified: datetime = answer["LastModified"]
    return (now - modified).total_seconds()
