"""List, download and upload files behind a URI: s3://BUCKET/… or any other that pyarrow knows.

Requests are retried a few times where that may help. Other failures raise one line that says what to do.
"""

import os
import random
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from tasks.io.home import expand_home

T = TypeVar("T")

_ATTEMPTS = 5
"""Attempts of `_retry`, up to 0.1, 0.2, 0.4 and 0.8 s apart; each is up to _CLIENT_ATTEMPTS of the S3 client."""
_CLIENT_ATTEMPTS = 5
"""The client waits up to 1, 2, 4 and 8 s between its attempts; a sixth would add minutes."""
_CONNECT_SECONDS, _REQUEST_SECONDS = 5, 20
_GOOGLE_SECONDS = 20
"""Retry limit of Google's client, whose default is 15 minutes."""
_BLOCK = 2**24
"""Bytes of one request: large enough for throughput, small enough to be sent again."""

_OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems without folders, which replace a file atomically."""
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
_DENIED = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|\w*SIGNATURE|\w*TOKEN|UNRECOGNIZED_CLIENT)|status 403"
)
_WRONG_REGION = re.compile(r"AWS Error (\w*REDIRECT|AUTHORIZATION_HEADER_MALFORMED)|HTTP status 301")
_NO_CONNECTION = "AWS Error NETWORK_CONNECTION"
_RETRIES_EXHAUSTED = re.compile("Retry policy exhausted")
_NO_BUCKET = re.compile(r"AWS Error NO_SUCH_BUCKET|^Bucket '.*' not found")


class RemotePath(NamedTuple):
    """A file or a folder: its URI, its file system, and the path there."""

    uri: str
    filesystem: fs.FileSystem
    path: str


class FileEntry(NamedTuple):
    """A file of a listing. name: relative to the listed folder, "/" between folders. size in bytes."""

    name: str
    size: int
    mtime_ns: int


def is_uri(text: str) -> bool:
    """Return whether a setting is a URI rather than a path of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def parse_uri(uri: str) -> RemotePath:
    """Return the path that a URI names. ValueError: no such kind of URI. OSError: no S3 endpoint answers."""
    filesystem, path = open_filesystem(uri)
    return RemotePath(uri.rstrip("/"), filesystem, path)


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI, and the path in it.

    S3 is configured by the usual variables: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION or AWS_DEFAULT_REGION,
    AWS_ACCESS_KEY_ID and so on. The text after s3:// is taken literally; in other URIs %20 is a space.
    """
    if not uri.startswith("s3://"):
        limit = f"{'&' if '?' in uri else '?'}retry_limit_seconds={_GOOGLE_SECONDS}"
        limited = uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in uri
        try:
            filesystem, path = fs.FileSystem.from_uri(uri + limit if limited else uri)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"cannot use {uri} ({_one_line(error)}): set an s3://, gs:// or file:/// URI") from error
        return filesystem, path.rstrip("/")
    path = uri.removeprefix("s3://").strip("/")
    if not path:
        raise ValueError(f"{uri} names no bucket: use s3://BUCKET/FOLDER")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    credentials = tuple(os.environ.get(name) for name in _CREDENTIALS)
    try:
        return _s3(path.partition("/")[0], _endpoint(), region, credentials), path
    except OSError as error:
        raise _explain(RemotePath(uri, None, path), "read", error) from error


def child(folder: RemotePath, name: str) -> RemotePath:
    """Return the path of the file `name` in a folder."""
    return RemotePath(f"{folder.uri}/{name}", folder.filesystem, f"{folder.path}/{name}")


def list_files(path: RemotePath) -> tuple[RemotePath, list[FileEntry]]:
    """Return a folder and all files below it, by name; for the path of a file, its folder and that file alone.

    FileNotFoundError: there is neither.
    """
    try:
        found = _retry(path, "read", partial(_find_files, path))
    except (FileNotFoundError, NotADirectoryError):
        single = _retry(path, "read", lambda: path.filesystem.get_file_info(path.path))
        if single.type != fs.FileType.File:
            raise
        folder = RemotePath(path.uri.rpartition("/")[0], path.filesystem, path.path.rpartition("/")[0])
        return folder, [FileEntry(single.base_name, single.size, single.mtime_ns)]
    start = len(path.path) + 1
    return path, sorted(FileEntry(file.path[start:], file.size, file.mtime_ns) for file in found)


def check_reachable(folder: RemotePath) -> None:
    """Raise OSError if the folder's bucket does not exist or cannot be read; the folder itself need not exist."""
    try:
        _retry(folder, "read", lambda: folder.filesystem.get_file_info(fs.FileSelector(folder.path)))
    except FileNotFoundError:
        return


def file_exists(path: RemotePath) -> bool:
    """Return whether there is a file at `path`."""
    found = _retry(path, "read", lambda: path.filesystem.get_file_info(path.path))
    return bool(found.type == fs.FileType.File)


def download(path: RemotePath, target: Path) -> int:
    """Copy a file to `target`, each block retried on its own. Return its size in bytes.

    FileNotFoundError: there is no such file.
    """
    with (
        _retry(path, "read", lambda: path.filesystem.open_input_file(path.path)) as source,
        target.open("wb") as out,
    ):
        size: int = source.size()
        for start in range(0, size, _BLOCK):
            out.write(_retry(path, "read", partial(_read_block, source, start, min(_BLOCK, size - start))))
    return size


def upload(source: Path, path: RemotePath) -> None:
    """Copy a file of this machine to `path`, where it appears whole or not at all."""
    _retry(path, "write to", partial(_write_file, source, path))


def _find_files(path: RemotePath) -> list[fs.FileInfo]:
    # allow_not_found would report a missing bucket as an empty one.
    found = path.filesystem.get_file_info(fs.FileSelector(path.path, recursive=True))
    return [file for file in found if file.type == fs.FileType.File]


def _read_block(source: pa.NativeFile, start: int, size: int) -> bytes:
    content: bytes = source.read_at(size, start)
    if len(content) != size:
        raise OSError(f"read {len(content)} bytes of {size}")
    return content


def _write_file(source: Path, path: RemotePath) -> None:
    filesystem, target = path.filesystem, path.path
    has_folders = filesystem.type_name not in _OBJECT_STORES
    if has_folders:
        folder, _, name = path.path.rpartition("/")
        filesystem.create_dir(folder, recursive=True)
        target = f"{folder}/.{name}.{secrets.token_hex(8)}"
    with source.open("rb") as file, filesystem.open_output_stream(target) as out:
        shutil.copyfileobj(file, out, _BLOCK)
    if has_folders:
        filesystem.move(target, path.path)
    # Closing the stream may hide a failed write, so ask the store for the size.
    arrived, size = filesystem.get_file_info(path.path).size, source.stat().st_size
    if arrived != size:
        raise OSError(f"{arrived} bytes arrived of {size}")


def _retry(path: RemotePath, verb: str, request: Callable[[], T]) -> T:
    """Return request(), retried after errors that may pass. verb: for messages, "read" or "write to"."""
    for attempt in range(_ATTEMPTS):
        try:
            return request()
        except OSError as error:
            if _is_permanent(error) or attempt == _ATTEMPTS - 1:
                raise _explain(path, verb, error) from error
            if _NO_CONNECTION in str(error):
                _check_endpoint(path)
        # SystemRandom leaves the caller's random state alone.
        time.sleep(random.SystemRandom().uniform(0, 0.1 * 2**attempt))
    raise AssertionError("the last attempt returns or raises")


def _is_permanent(error: OSError) -> bool:
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return True
    return any(kind.search(str(error)) for kind in (_DENIED, _NO_BUCKET, _WRONG_REGION, _RETRIES_EXHAUSTED))


def _explain(path: RemotePath, verb: str, error: OSError) -> OSError:
    """Return the same error as one line with its remedy."""
    text, uri = _one_line(error), path.uri
    if isinstance(error, ConnectionError) or _NO_CONNECTION in text:
        remedy = "set AWS_ENDPOINT_URL to the address of the object store, and check that this machine reaches it"
        return ConnectionError(f"{uri}: no answer at {_endpoint() or 'the endpoint of AWS'} ({text}): {remedy}")
    if _NO_BUCKET.search(text):
        bucket = path.path.partition("/")[0]
        return OSError(f"{uri}: there is no such bucket: create {bucket}, or fix its name")
    if _DENIED.search(text) or isinstance(error, PermissionError):
        return PermissionError(_explain_denial(path, verb, text))
    if _WRONG_REGION.search(text):
        return OSError(f"{uri}: the bucket is in another region: set AWS_REGION to its own")
    if verb == "read" and isinstance(error, FileNotFoundError | NotADirectoryError):
        return type(error)(f"{uri} does not exist: fix the name, or upload it")
    if _RETRIES_EXHAUSTED.search(text):
        remedy = "check that this machine reaches it, and has credentials for it"
        return ConnectionError(f"{uri}: no answer ({text[:200]}…): {remedy}")
    return OSError(f"cannot {verb} {uri} ({text}): try again")


def _explain_denial(path: RemotePath, verb: str, text: str) -> str:
    if not path.uri.startswith("s3://"):
        return f"{path.uri}: access denied ({text}): use an account that may {verb} it"
    named = any(os.environ.get(name) for name in _CREDENTIALS)
    code = re.search(r"AWS Error (\w+)", text)
    reason = (code[1] if code else text) if named else "AWS_ACCESS_KEY_ID is not set"
    remedy = f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of an account that may {verb} it"
    return f"{path.uri}: access denied ({reason}): {remedy}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _endpoint() -> str | None:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if endpoint is not None and not (re.match("https?://", endpoint) and urlsplit(endpoint).hostname):
        raise ValueError(f"AWS_ENDPOINT_URL is '{endpoint}': set it to http://HOST:PORT or https://HOST:PORT")
    return endpoint


@lru_cache(maxsize=16)
def _s3(bucket: str, endpoint: str | None, region: str | None, _credentials: Any) -> fs.S3FileSystem:
    """Open S3. _credentials: what the client itself reads from the environment, here as part of the cache key."""
    options: dict[str, Any] = {}
    if endpoint is not None:
        check_listening(endpoint)
        parts = urlsplit(endpoint)
        options = {"scheme": parts.scheme, "endpoint_override": parts.netloc + parts.path.rstrip("/")}
        region = region or "us-east-1"
    return fs.S3FileSystem(
        region=region or fs.resolve_s3_region(bucket),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_CLIENT_ATTEMPTS),
        tls_ca_file_path=expand_home(bundle) if (bundle := os.environ.get("AWS_CA_BUNDLE")) else None,
        allow_delayed_open=True,  # one request for a small file, not three
        **options,
    )


def _check_endpoint(path: RemotePath) -> None:
    endpoint = _endpoint() if path.uri.startswith("s3://") else None
    if endpoint is not None:
        try:
            check_listening(endpoint)
        except OSError as error:
            raise _explain(path, "read", error) from error


def check_listening(endpoint: str) -> None:
    """Raise ConnectionError at once if nothing listens at the endpoint; a client of S3 would retry for minutes."""
    parts = urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(error.strerror or _one_line(error)) from error
