"""Objects in S3, or in what speaks like it: the only file that knows boto3.

Credentials, region and endpoint come from the usual AWS_… variables and files. Requests are tried again with growing
pauses. What cannot be done is a StorageError of one line, with the remedy.
"""

import os
import random
import socket
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

ATTEMPTS = 8
_CUTS = 6
_KNOCK_S = 5.0


class StorageError(OSError):
    """The object storage does not do its part. The message says what, and the remedy."""


class _Cut(StorageError):
    """An answer ended before it was whole, or did not come."""


class Outdated(Exception):
    """A conditional write found something other than what it was conditional on."""


class Content(NamedTuple):
    """An object: its bytes, its version's tag, and how old that version is in seconds, by the server's own clock."""

    body: bytes
    etag: str
    age: float


class Bucket:
    """The objects under `s3://name/prefix/`."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.uri = uri.rstrip("/")
        self.name, self.prefix = parts.netloc, parts.path.strip("/")
        if parts.scheme != "s3" or not self.name or not self.prefix:
            raise ValueError(f"{uri}: runs are kept on disks and in s3://BUCKET/FOLDER: give one of these")
        with self._told():
            retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
            config = Config(retries=retries, connect_timeout=5, read_timeout=20)
            self._client: Any = boto3.session.Session().client("s3", config=config)

    def reachable(self) -> None:
        """Returns once the bucket has answered. StorageError, soon: there is no endpoint, no bucket, or no access."""
        self._knock()
        with self._told():
            self._client.list_objects_v2(Bucket=self.name, Prefix=f"{self.prefix}/", MaxKeys=1)

    def get(self, key: str) -> Content | None:
        """The object called `key`, None where there is none. An answer that is cut short is asked for again."""
        for cut in range(_CUTS):
            try:
                with self._told():
                    answer = self._client.get_object(Bucket=self.name, Key=self._key(key))
                    with closing(answer["Body"]) as body:
                        return Content(body.read(), answer["ETag"], _age(answer))
            except FileNotFoundError:
                return None
            except _Cut:
                time.sleep(random.uniform(0, 0.2 * 2**cut))
        raise StorageError(f"{self.uri}/{key} was cut short {_CUTS} times: try again when the network is better")

    def put(self, key: str, body: bytes, replacing: str | None) -> str:
        """Writes the object if its tag is still `replacing`, or None if there is none yet; returns the new tag.

        Outdated: somebody else wrote it. Also raised where our own first attempt was done but its answer lost.
        """
        condition = {"IfNoneMatch": "*"} if replacing is None else {"IfMatch": replacing}
        try:
            with self._told():
                answer = self._client.put_object(Bucket=self.name, Key=self._key(key), Body=body, **condition)
                return str(answer["ETag"])
        except FileNotFoundError as error:
            raise Outdated from error

    def upload(self, path: Path, key: str) -> None:
        """A file of any size, as the object called `key`."""
        with self._told():
            self._client.upload_file(str(path), self.name, self._key(key))

    def download(self, key: str, path: Path) -> bool:
        """The object called `key` as a file; False, and no file, where there is none."""
        try:
            with self._told():
                self._client.download_file(self.name, self._key(key), str(path))
        except FileNotFoundError:
            return False
        except _Cut as error:
            raise StorageError(f"{self.uri}/{key} was cut short: try again when the network is better") from error
        return True

    def remove(self, key: str) -> None:
        """Removes an object; nothing where there is none."""
        with self._told():
            self._client.delete_object(Bucket=self.name, Key=self._key(key))

    def keys(self) -> Iterator[str]:
        """All objects there are."""
        with self._told():
            start = f"{self.prefix}/"
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=start):
                yield from (item["Key"].removeprefix(start) for item in page.get("Contents", ()))

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}"

    def _knock(self) -> None:
        """boto3 alone goes on trying for a minute where nobody listens."""
        url = urlsplit(self._client.meta.endpoint_url)
        port = url.port or (80 if url.scheme == "http" else 443)
        proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"))
        if proxied:
            return
        try:
            socket.create_connection((url.hostname or "", port), timeout=_KNOCK_S).close()
        except OSError as error:
            raise self._nobody(error.strerror or str(error)) from error

    def _nobody(self, reason: str) -> StorageError:
        url = self._client.meta.endpoint_url
        return StorageError(f"{self.uri}: no answer from {url} ({reason}): set AWS_ENDPOINT_URL, or mend the network")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            raise StorageError(f"{self.uri}: there are no credentials for it: {remedy}") from error
        except (CutShort, ResponseStreamingError, Stalled) as error:
            raise _Cut(f"{self.uri}: an answer was cut short or did not come: try again") from error
        except (EndpointConnectionError, ConnectTimeoutError) as error:
            raise self._nobody(type(error).__name__) from error
        except ClientError as error:
            raise self._refused(error) from error
        except (BotoCoreError, S3UploadFailedError) as error:
            if isinstance(error.__context__, ClientError):
                raise self._refused(error.__context__) from error
            raise StorageError(f"{self.uri}: {' '.join(str(error).split())}: try again") from error

    def _refused(self, error: ClientError) -> Exception:
        """What an answer other than yes means."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in ("PreconditionFailed", "ConditionalRequestConflict") or status in (409, 412):
            return Outdated()
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
    """By the server's clock alone: a machine whose own clock jumped is no wiser, nor more foolish."""
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    modified: datetime = answer["LastModified"]
    return (now - modified).total_seconds()
