"""Files elsewhere: what a URI names, s3://BUCKET/… or any other that pyarrow knows, to be listed, fetched and written.

Every request is repeated a few times where that may help. What does not help is one line that says what to do.
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

T = TypeVar("T")

_ATTEMPTS = 5
"""Of ours, with up to 0.1, 0.2, 0.4 and 0.8 s between them; each is several of the S3 client's own."""
_CLIENT_ATTEMPTS = 5
"""The client waits up to 1, 2, 4 and 8 s between its own; from the sixth on it would be minutes."""
_CONNECT_SECONDS, _SILENT_SECONDS = 5, 20
_BLOCK = 2**24
"""Bytes of one request: large enough for throughput, small enough to be sent again."""

_BUCKETS = ("s3", "gcs", "abfs")
"""File systems without folders, in which a file is whole or not there."""
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
_DENIED = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|\w*SIGNATURE|\w*TOKEN|UNRECOGNIZED_CLIENT)|status 403"
)
_ELSEWHERE = re.compile(r"AWS Error (\w*REDIRECT|AUTHORIZATION_HEADER_MALFORMED)|HTTP status 301")
_SILENT = "AWS Error NETWORK_CONNECTION"
_GAVE_UP = re.compile("Retry policy exhausted")
"""Google's client, after _GOOGLE_SECONDS; it would go on for 15 minutes."""
_GOOGLE_SECONDS = 20
_NO_BUCKET = re.compile(r"AWS Error NO_SUCH_BUCKET|^Bucket '.*' not found")


class Place(NamedTuple):
    """A file or a folder: the URI that it is called by, and where that is."""

    uri: str
    filesystem: fs.FileSystem
    path: str


class Entry(NamedTuple):
    """A file in a listing. name: relative to the folder listed, "/" between folders. size in bytes."""

    name: str
    size: int
    mtime_ns: int


def is_uri(text: str) -> bool:
    """Whether a setting is a URI rather than a path of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def place_at(uri: str) -> Place:
    """What a URI names. Raises ValueError for none that can be, OSError for an S3 endpoint that is not there."""
    filesystem, path = opened_filesystem(uri)
    return Place(uri.rstrip("/"), filesystem, path)


def opened_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI, and the path in it.

    S3 is found as by every other client: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION or AWS_DEFAULT_REGION,
    AWS_ACCESS_KEY_ID and so on. What follows s3:// is taken as it is; in other URIs %20 is a space.
    """
    if not uri.startswith("s3://"):
        limit = f"{'&' if '?' in uri else '?'}retry_limit_seconds={_GOOGLE_SECONDS}"
        limited = uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in uri
        try:
            filesystem, path = fs.FileSystem.from_uri(uri + limit if limited else uri)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"cannot use {uri} ({_line(error)}): give an s3://, gs:// or file:/// URI") from error
        return filesystem, path.rstrip("/")
    path = uri.removeprefix("s3://").strip("/")
    if not path:
        raise ValueError(f"{uri} names no bucket: give s3://BUCKET/FOLDER")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    credentials = tuple(os.environ.get(name) for name in _CREDENTIALS)
    try:
        return _s3(path.partition("/")[0], _endpoint(), region, credentials), path
    except OSError as error:
        raise _named(Place(uri, None, path), "read", error) from error


def below(folder: Place, name: str) -> Place:
    """The file `name` in a folder."""
    return Place(f"{folder.uri}/{name}", folder.filesystem, f"{folder.path}/{name}")


def listing(place: Place) -> tuple[Place, list[Entry]]:
    """A folder and all files below it, by name; for the place of a file, the folder it lies in and that file alone.

    Raises FileNotFoundError where there is neither.
    """
    try:
        found = _repeated(place, "read", partial(_files, place))
    except (FileNotFoundError, NotADirectoryError):
        single = _repeated(place, "read", lambda: place.filesystem.get_file_info(place.path))
        if single.type != fs.FileType.File:
            raise
        folder = Place(place.uri.rpartition("/")[0], place.filesystem, place.path.rpartition("/")[0])
        return folder, [Entry(single.base_name, single.size, single.mtime_ns)]
    start = len(place.path) + 1
    return place, sorted(Entry(file.path[start:], file.size, file.mtime_ns) for file in found)


def check_reachable(folder: Place) -> None:
    """Raises OSError for a folder whose bucket is not there or cannot be read; a folder may be yet to be made."""
    try:
        _repeated(folder, "read", lambda: folder.filesystem.get_file_info(fs.FileSelector(folder.path)))
    except FileNotFoundError:
        return


def exists(place: Place) -> bool:
    """Whether there is such a file."""
    found = _repeated(place, "read", lambda: place.filesystem.get_file_info(place.path))
    return bool(found.type == fs.FileType.File)


def fetch(place: Place, target: Path) -> int:
    """Copy a file to `target`, block by block, each asked for again where it fails. Returns its size in bytes.

    Raises FileNotFoundError where it is not there.
    """
    with (
        _repeated(place, "read", lambda: place.filesystem.open_input_file(place.path)) as source,
        target.open("wb") as out,
    ):
        size: int = source.size()
        for start in range(0, size, _BLOCK):
            out.write(_repeated(place, "read", partial(_block, source, start, min(_BLOCK, size - start))))
    return size


def publish(path: Path, place: Place) -> None:
    """Write a file of this machine to a place, where it appears whole or not at all."""
    _repeated(place, "write to", partial(_put, path, place))


def _files(place: Place) -> list[fs.FileInfo]:
    # allow_not_found would take a bucket that is not there for an empty one.
    found = place.filesystem.get_file_info(fs.FileSelector(place.path, recursive=True))
    return [file for file in found if file.type == fs.FileType.File]


def _block(source: pa.NativeFile, start: int, size: int) -> bytes:
    content: bytes = source.read_at(size, start)
    if len(content) != size:
        raise OSError(f"{len(content)} bytes came of {size}")
    return content


def _put(path: Path, place: Place) -> None:
    filesystem, target = place.filesystem, place.path
    in_folders = filesystem.type_name not in _BUCKETS
    if in_folders:
        folder, _, name = place.path.rpartition("/")
        filesystem.create_dir(folder, recursive=True)
        target = f"{folder}/.{name}.{secrets.token_hex(8)}"
    with path.open("rb") as source, filesystem.open_output_stream(target) as out:
        shutil.copyfileobj(source, out, _BLOCK)
    if in_folders:
        filesystem.move(target, place.path)
    # Told by the store itself: a write that failed while the file was being closed need not have been reported.
    arrived, size = filesystem.get_file_info(place.path).size, path.stat().st_size
    if arrived != size:
        raise OSError(f"{arrived} bytes arrived of {size}")


def _repeated(place: Place, verb: str, act: Callable[[], T]) -> T:
    """act(), again where another try may help. verb: what it is about, for messages, "read" or "write to"."""
    for attempt in range(_ATTEMPTS):
        try:
            return act()
        except OSError as error:
            if _is_final(error) or attempt == _ATTEMPTS - 1:
                raise _named(place, verb, error) from error
            if _SILENT in str(error):
                _check_answers(place)
        # Jitter is no part of any computation, and must not move the caller's generator.
        time.sleep(random.SystemRandom().uniform(0, 0.1 * 2**attempt))
    raise AssertionError("the last attempt returns or raises")


def _is_final(error: OSError) -> bool:
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return True
    return any(kind.search(str(error)) for kind in (_DENIED, _NO_BUCKET, _ELSEWHERE, _GAVE_UP))


def _named(place: Place, verb: str, error: OSError) -> OSError:
    """The same error, in one line that says what to do."""
    text, uri = _line(error), place.uri
    if isinstance(error, ConnectionError) or _SILENT in text:
        remedy = "set AWS_ENDPOINT_URL to where the object store listens, and see that this machine reaches it"
        return ConnectionError(f"{uri}: no answer at {_endpoint() or 'the endpoint of AWS'} ({text}): {remedy}")
    if _NO_BUCKET.search(text):
        bucket = place.path.partition("/")[0]
        return OSError(f"{uri}: there is no such bucket: make {bucket}, or mend its name")
    if _DENIED.search(text) or isinstance(error, PermissionError):
        return PermissionError(_denial(place, verb, text))
    if _ELSEWHERE.search(text):
        return OSError(f"{uri}: the bucket is in another region: set AWS_REGION to its own")
    if verb == "read" and isinstance(error, FileNotFoundError | NotADirectoryError):
        return type(error)(f"{uri} is not there: mend the name, or put it there")
    if _GAVE_UP.search(text):
        remedy = "see that this machine reaches it, and has credentials for it"
        return ConnectionError(f"{uri}: no answer ({text[:200]}…): {remedy}")
    return OSError(f"cannot {verb} {uri} ({text}): try again")


def _denial(place: Place, verb: str, text: str) -> str:
    if not place.uri.startswith("s3://"):
        return f"{place.uri}: access denied ({text}): use an account that may {verb} it"
    named = any(os.environ.get(name) for name in _CREDENTIALS)
    code = re.search(r"AWS Error (\w+)", text)
    reason = (code[1] if code else text) if named else "AWS_ACCESS_KEY_ID is not set"
    remedy = f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of an account that may {verb} it"
    return f"{place.uri}: access denied ({reason}): {remedy}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _endpoint() -> str | None:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if endpoint is not None and not (re.match("https?://", endpoint) and urlsplit(endpoint).hostname):
        raise ValueError(f"AWS_ENDPOINT_URL is '{endpoint}': set it to http://HOST:PORT or https://HOST:PORT")
    return endpoint


@lru_cache(maxsize=16)
def _s3(bucket: str, endpoint: str | None, region: str | None, _credentials: Any) -> fs.S3FileSystem:
    """_credentials: what the client reads by itself, so that others are not answered with this client."""
    options: dict[str, Any] = {}
    if endpoint is not None:
        _knock(endpoint)
        parts = urlsplit(endpoint)
        options = {"scheme": parts.scheme, "endpoint_override": parts.netloc + parts.path.rstrip("/")}
        region = region or "us-east-1"
    return fs.S3FileSystem(
        region=region or fs.resolve_s3_region(bucket),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_SILENT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_CLIENT_ATTEMPTS),
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
        allow_delayed_open=True,  # one request for a small file, not three
        **options,
    )


def _check_answers(place: Place) -> None:
    endpoint = _endpoint() if place.uri.startswith("s3://") else None
    if endpoint is not None:
        try:
            _knock(endpoint)
        except OSError as error:
            raise _named(place, "read", error) from error


def _knock(endpoint: str) -> None:
    """Raises ConnectionError at once for an endpoint that nobody listens at; the client would try for long."""
    parts = urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(error.strerror or _line(error)) from error
