"""Connect to a Ray cluster at an address, or start one on this machine for the time of a run."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import grpc
import ray
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.job_config import JobConfig

from cluster.local_ray import LocalRay
from cluster.token_file import protect_token
from metatrain.errors import WorkersLost
from metatrain.own_packages import ROOT
from metatrain.settings import ExecutorSettings
from metatrain.signals import deferred_signals
from metatrain.validation import require

_INLINE_LIMIT = "RAY_max_direct_call_object_size"
_TIMEOUT_S = 10.0
_WORKERS_PER_CORE = 32
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The first bytes of a gRPC client: the connection preface of HTTP/2 (RFC 9113, section 3.4) and empty settings."""
_SETTINGS_FRAME = 4
_FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first call that Ray's own client makes to a cluster."""
_local: LocalRay | None = None
"""The cluster that was started here, while it is there."""
_failure = ""
"""Why Ray cannot be used any more in this process; empty while it can."""


@contextmanager
def connect_ray(settings: ExecutorSettings, besides: int = 0) -> Iterator[None]:
    """Keep Ray initialised within the block; on exit stop a cluster that was started here, leave one that was joined.

    Joins the cluster at `executor.address`, else at RAY_ADDRESS, which Ray sets for jobs; without either starts one,
    with `besides` logical cores more than workers. Raises ValueError where the address does not answer or the cluster
    has too few GPUs, WorkersLost where Ray does not start here.
    """
    check_ray()
    if ray.is_initialized():
        yield
        return
    variable = os.environ.get("RAY_ADDRESS", "")
    joinable = variable if not variable.startswith(("http://", "https://")) else ""  # http: a dashboard, for jobs
    address = settings.address if settings.address is not None else joinable or None
    with _local_cluster(settings, besides) if address is None else nullcontext():
        if address is not None:
            _join(address)
        try:
            _require_gpus(settings, joined=address is not None)
            yield
        finally:
            if not lost():  # it takes Ray seconds to end then, if it does: it is left to the end of the process
                with deferred_signals():
                    ray.shutdown()


def check_ray() -> None:
    """Raise WorkersLost if Ray has failed: then no call to it may be made, as it would wait, or end this process.

    It costs microseconds: for use before everything that needs Ray.
    """
    if not _failure and _local is not None and (ended := _local.ended()):
        _local.stop()
        give_up(f"Ray on this machine has failed ({ended} has ended): its logs are in {_local.logs}")
    if _failure:
        raise WorkersLost(_failure)


def give_up(failure: str) -> NoReturn:
    """Note that Ray has failed and must not be called any more in this process; raise WorkersLost."""
    global _failure
    _failure = failure
    raise WorkersLost(failure)


def lost() -> bool:
    """Tell whether Ray has failed."""
    return bool(_failure)


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


@contextmanager
def _local_cluster(settings: ExecutorSettings, besides: int) -> Iterator[None]:
    """Start a cluster on this machine and join it; workers beyond its real cores share them."""
    global _local
    cores, most = os.cpu_count() or 1, settings.workers_per_node
    one_node = f"executor.workers_per_node: Ray on this machine is one node, where {most} of {settings.max_workers}"
    fits = most is None or settings.max_workers <= most
    require(fits, f"{one_node} workers may run: lower executor.workers, or set executor.address to a cluster")
    require(
        settings.max_workers <= _WORKERS_PER_CORE * cores,
        f"executor.workers: {settings.max_workers} processes on {cores} cores would exhaust this machine: lower "
        "it, or set executor.address to a cluster",
    )
    # Parameters and gradients of small networks then travel within messages: a step of theirs idles half as long.
    os.environ.setdefault(_INLINE_LIMIT, str(1 << 20))
    _use_token()
    try:
        with deferred_signals():
            _local = LocalRay(max(cores, settings.max_workers + besides))
        _join_local(_local)
        yield
    finally:
        with deferred_signals():
            if ray.is_initialized() and not lost():  # a signal came as soon as it was joined
                ray.shutdown()
            if _local is not None:
                _local.stop()
            _local = None


def _join_local(local: LocalRay) -> None:
    try:
        _init(address=local.address())
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WorkersLost(
            f"Ray cannot be started on this machine ({reason}): try again when less runs on it, or set executor.name "
            "to in_process"
        ) from error


def _use_token() -> None:
    """Ask for a token, as Ray does by default for clusters of this kind; it makes one where there is none."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    ray._raylet.Config.initialize("")  # type: ignore[attr-defined]  # Ray has read the variable when it was imported
    protect_token()
    ensure_token_if_auth_enabled(create_token_if_missing=True)


def _join(address: str) -> None:
    try:
        _check_reachable(address)
        _init(address=address)
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
    """Call `ray.init` in a thread, as on the main thread it handles SIGTERM itself; signals have to wait for its end.

    Interrupted half-way, Ray aborts the process when that ends.
    """
    with ThreadPoolExecutor(1) as thread, deferred_signals():
        logging.getLogger("ray").setLevel(logging.ERROR)  # it warns that it cannot handle SIGTERM
        options |= {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": _search_path()}
        thread.submit(ray.init, **options).result()


def _search_path() -> JobConfig | None:
    """Have workers look for modules in our packages' folder and then in the current one, where a user's own are.

    Ray would put the current folder first, and a `tasks.py` there before our package. Jobs have a path of their own.
    """
    if RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ:
        return None
    return JobConfig(_client_job=True, _py_driver_sys_path=[str(Path.cwd()), str(ROOT)])  # the last one comes first


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
