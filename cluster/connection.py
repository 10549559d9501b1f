"""Connect to a Ray cluster at an address, or start one on this machine for the time of a run."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import ray
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

from cluster.token_file import protect_token
from metatrain.errors import WorkersLost
from metatrain.settings import ExecutorSettings
from metatrain.validation import require

_INLINE_LIMIT = "RAY_max_direct_call_object_size"
_TIMEOUT_S = 10.0
_WORKERS_PER_CORE = 32
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The first bytes of a gRPC client: the connection preface of HTTP/2 (RFC 9113, section 3.4) and empty settings."""
_SETTINGS_FRAME = 4
_FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first call that Ray's own client makes to a cluster."""


@contextmanager
def connect_ray(settings: ExecutorSettings, besides: int = 0) -> Iterator[None]:
    """Keep Ray initialised within the block; on exit stop a cluster that was started here, leave one that was joined.

    Joins the cluster at `executor.address`, else at RAY_ADDRESS, which Ray sets for jobs; without either starts one,
    with `besides` logical cores more than workers. Raises ValueError where the address does not answer or the cluster
    has too few GPUs, WorkersLost where Ray does not start here.
    """
    if ray.is_initialized():
        yield
        return
    variable = os.environ.get("RAY_ADDRESS", "")
    joinable = variable if not variable.startswith(("http://", "https://")) else ""  # http: a dashboard, for jobs
    address = settings.address if settings.address is not None else joinable or None
    if address is not None:
        _join(address)
    else:
        cores = os.cpu_count() or 1
        require(
            settings.max_workers <= _WORKERS_PER_CORE * cores,
            f"executor.workers: {settings.max_workers} processes on {cores} cores would exhaust this machine: lower "
            "it, or set executor.address to a cluster",
        )
        _start(max(cores, settings.max_workers + besides))
    try:
        _require_gpus(settings, joined=address is not None)
        yield
    finally:
        ray.shutdown()


def max_inline_bytes() -> int:
    """Return the size in bytes up to which Ray sends an object within a message, not through its object store."""
    return int(os.environ.get(_INLINE_LIMIT, 100 * 1024))


def _require_gpus(settings: ExecutorSettings, joined: bool) -> None:
    gpus = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]
    fixed = isinstance(settings.workers, int)
    wanted = (
        settings.workers if isinstance(settings.workers, int) else settings.workers.min
    ) * settings.gpus_per_worker
    require(
        wanted <= gpus or (joined and not fixed),  # an autoscaler adds nodes only once actors ask for them
        f"executor.gpus_per_worker: {wanted:g} GPUs asked for, the cluster has {gpus:g}: lower it or workers, or, "
        "where a cluster grows when it is asked to, set executor.workers={min: 1, max: N}",
    )


def _start(cores: int) -> None:
    """Start a cluster of `cores` logical cores on this machine; workers beyond its real cores share them."""
    # Parameters and gradients of small networks then travel within messages: a step of theirs idles half as long.
    os.environ.setdefault(_INLINE_LIMIT, str(1 << 20))
    protect_token()
    try:
        _init(
            address="local",  # without it Ray would join a cluster that runs on this machine already
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.WARNING,
        )
    except Exception as error:
        # Ray raises a bare Exception where its processes do not start in time; other types pass unchanged.
        if type(error) is not Exception and not isinstance(error, (OSError, RuntimeError)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise WorkersLost(
            f"Ray cannot be started on this machine ({reason}): try again when less runs on it, or set executor.name "
            "to in_process"
        ) from error


def _join(address: str) -> None:
    try:
        _check_reachable(address)
        _init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise ValueError(str(error)) from error
        if "Version mismatch" in str(error):
            raise ValueError(_format_version_mismatch(address, str(error))) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"executor.address: no Ray cluster answers at '{address}' ({reason}): start one with `ray start --head`, "
            "or remove the address to start one on this machine"
        ) from error


def _init(**options: Any) -> None:
    """Call `ray.init`, and restore the SIGTERM handler, which it replaces by one that aborts."""
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _format_version_mismatch(address: str, message: str) -> str:
    """Return Ray's message on both sides' versions as one line."""
    (ray_there, ray_here), (python_there, python_here) = (
        re.findall(rf"^\s*{name}: (\S+)", message, re.MULTILINE)[:2] for name in ("Ray", "Python")
    )
    return (
        f"executor.address: the cluster at '{address}' runs Ray {ray_there} on Python {python_there}, and this is Ray "
        f"{ray_here} on Python {python_here}: use the cluster's versions here, or its image"
    )


def _check_reachable(address: str) -> None:
    """Raise OSError where no gRPC server listens at host:port, as Ray would retry for minutes; "auto" passes.

    Raises PermissionError where the cluster refuses the token, ValueError where `address` is not an address.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    require(bool(host) and port.isdecimal() and int(port) < 2**16, "it is not host:port, ray://host:port or auto")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        connection.settimeout(_TIMEOUT_S / 2)
        connection.sendall(_HTTP2_PREFACE)
        reply = connection.recv(9)
    if len(reply) < 4 or reply[3] != _SETTINGS_FRAME:
        raise ConnectionError("what listens there is not Ray; its port is 6379 by default, its client's 10001")
    if not address.startswith("ray://") and not _accepts_token(address):
        raise PermissionError(
            f"executor.address: the cluster at '{address}' does not accept this token, or wants one: set "
            "RAY_AUTH_MODE=token, and put the auth_token of its head into ~/.ray/auth_token or RAY_AUTH_TOKEN"
        )


def _accepts_token(address: str) -> bool:
    """Tell whether the cluster accepts our token, or the lack of one; Ray would retry for half a minute."""
    headers = get_auth_headers_if_auth_enabled({})
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_FIRST_CALL)
        try:
            call(b"", metadata=[(key.lower(), value) for key, value in headers.items()], timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            return bool(error.code() != grpc.StatusCode.UNAUTHENTICATED)
    return True
