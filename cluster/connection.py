"""Joining a Ray cluster, or starting one on this machine for as long as the run lasts."""

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

from metatrain.errors import WorkersLost
from metatrain.settings import ExecutorSettings
from metatrain.validation import require

_LIMIT = "RAY_max_direct_call_object_size"
_PATIENCE_S = 10.0
_WORKERS_PER_CORE = 32
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a gRPC client begins: the preface of HTTP/2 (RFC 9113, §3.4) and empty settings."""
_SETTINGS_FRAME = 4
_FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What Ray's own client asks a cluster first."""


@contextmanager
def connected(settings: ExecutorSettings, besides: int = 0) -> Iterator[None]:
    """Ray is there within; a cluster that was started here is stopped again, one that was joined is left alone.

    besides: how many logical cores it is to have beside the workers', where it is started here.

    Joined is the one at `address`, or at RAY_ADDRESS, which Ray sets for jobs that it runs; without either one starts.
    Raises ValueError, with the remedy, where the address does not answer or the GPUs asked for are not there.
    """
    if ray.is_initialized():
        yield
        return
    named = os.environ.get("RAY_ADDRESS", "")
    elsewhere = named if not named.startswith(("http://", "https://")) else ""  # that is a dashboard's, for jobs
    address = settings.address if settings.address is not None else elsewhere or None
    if address is not None:
        _join(address)
    else:
        cores = os.cpu_count() or 1
        require(
            settings.max_workers <= _WORKERS_PER_CORE * cores,
            f"executor.workers: {settings.max_workers} processes on {cores} cores would exhaust this machine: lower "
            "it, or name a cluster in executor.address",
        )
        _start(max(cores, settings.max_workers + besides))
    try:
        gpus = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]
        fewest = settings.workers if isinstance(settings.workers, int) else settings.workers.min
        wanted = fewest * settings.gpus_per_worker
        grows = address is not None and not isinstance(settings.workers, int)  # by an autoscaler, once it is asked
        require(
            wanted <= gpus or grows,
            f"executor.gpus_per_worker: {wanted:g} GPUs asked for, the cluster has {gpus:g}: lower it or workers, or, "
            "where a cluster grows when it is asked to, set executor.workers={min: 1, max: N}",
        )
        yield
    finally:
        ray.shutdown()


def within_messages() -> int:
    """Up to how many bytes Ray puts an object into the message that asks for it, not into its object store."""
    return int(os.environ.get(_LIMIT, 100 * 1024))


def _start(cores: int) -> None:
    """A cluster of `cores` logical cores on this machine.

    Workers may outnumber cores (they then share them): a result must not depend on how many there are.
    """
    # Parameters and gradients of small networks then travel within messages: a step of theirs idles half as long.
    os.environ.setdefault(_LIMIT, str(1 << 20))
    try:
        _init(
            address="local",  # without it Ray would join what runs here already, if something does
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.WARNING,
        )
    except Exception as error:
        # Ray raises a bare Exception where its processes do not come up in time; other surprises stay what they are.
        if type(error) is not Exception and not isinstance(error, (OSError, RuntimeError)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise WorkersLost(
            f"Ray cannot be started on this machine ({reason}): try again when less runs on it, or set executor.name "
            "to in_process"
        ) from error


def _join(address: str) -> None:
    try:
        _knock(address)
        _init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise ValueError(str(error)) from error
        if "Version mismatch" in str(error):
            raise ValueError(_other_versions(address, str(error))) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"executor.address: no Ray cluster answers at '{address}' ({reason}): start one with `ray start --head`, "
            "or leave the address out for one on this machine"
        ) from error


def _init(**options: Any) -> None:
    """`ray.init`, which takes SIGTERM for itself and aborts on it: who had it before has it again."""
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _other_versions(address: str, told: str) -> str:
    """Ray's account of both sides' versions, in one line."""
    (ray_there, ray_here), (python_there, python_here) = (
        re.findall(rf"^\s*{name}: (\S+)", told, re.MULTILINE)[:2] for name in ("Ray", "Python")
    )
    return (
        f"executor.address: the cluster at '{address}' runs Ray {ray_there} on Python {python_there}, and this is Ray "
        f"{ray_here} on Python {python_here}: use the cluster's versions here, or its image"
    )


def _knock(address: str) -> None:
    """OSError where nothing that speaks gRPC listens at host:port; Ray alone goes on trying for minutes.

    "auto" passes. ValueError: no address at all.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    require(bool(host) and port.isdecimal() and int(port) < 2**16, "it is not host:port, ray://host:port or auto")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S) as line:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        line.settimeout(_PATIENCE_S / 2)
        line.sendall(_GREETING)
        answer = line.recv(9)
    if len(answer) < 4 or answer[3] != _SETTINGS_FRAME:
        raise ConnectionError("what listens there is not Ray; its port is 6379 by default, its client's 10001")
    if not address.startswith("ray://") and not _lets_in(address):
        raise PermissionError(
            f"executor.address: the cluster at '{address}' does not accept this token, or wants one: set "
            "RAY_AUTH_MODE=token, and put the auth_token of its head into ~/.ray/auth_token or RAY_AUTH_TOKEN"
        )


def _lets_in(address: str) -> bool:
    """Whether a cluster takes our token, or none where we have none; Ray alone goes on trying for half a minute."""
    headers = get_auth_headers_if_auth_enabled({})
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(_FIRST_CALL)
        try:
            ask(b"", metadata=[(key.lower(), value) for key, value in headers.items()], timeout=_PATIENCE_S)
        except grpc.RpcError as error:
            return bool(error.code() != grpc.StatusCode.UNAUTHENTICATED)
    return True
