"""Joining a Ray cluster, or starting one on this machine for as long as the run lasts."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from metatrain.checks import require
from metatrain.settings import ExecutorSettings

_PATIENCE_S = 10.0


@contextmanager
def connected(settings: ExecutorSettings) -> Iterator[None]:
    """Ray is there within; a cluster that was started here is stopped again, one that was joined is left alone.

    Raises ValueError, with the remedy, where the address does not answer or the GPUs asked for are not there.
    """
    if ray.is_initialized():
        yield
        return
    if settings.address is not None:
        _join(settings.address)
    else:
        # Workers may outnumber cores (they then share them): a result must not depend on how many there are.
        ray.init(
            num_cpus=max(os.cpu_count() or 1, settings.workers),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.WARNING,
        )
    try:
        gpus = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]
        wanted = settings.workers * settings.gpus_per_worker
        require(
            wanted <= gpus,
            f"executor.gpus_per_worker: {wanted:g} GPUs asked for, the cluster has {gpus:g}: lower it or workers",
        )
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"executor.address: no Ray cluster answers at '{address}' ({reason}): start one with `ray start --head`, "
            "or leave the address out for one on this machine"
        ) from error


def _knock(address: str) -> None:
    """OSError where nothing listens at host:port, at once; Ray alone goes on trying for minutes. "auto" passes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), min(int(port), 65535)), timeout=_PATIENCE_S).close()
