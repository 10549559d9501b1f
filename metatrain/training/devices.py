"""Choose the device of a worker, and keep its process from giving memory back."""

import ctypes
import sys

import torch

from metatrain.settings import Config
from metatrain.validation import require


def driver_device(config: Config) -> torch.device:
    """Return the CPU, or the device that shards are computed on if that is done in the driver's process."""
    return device_for(config.executor.gpus_per_worker if config.executor.name == "in_process" else 0)


def device_for(gpus: float) -> torch.device:
    """Return the device of a worker with so many GPUs. ValueError: torch sees none."""
    if gpus <= 0:
        return torch.device("cpu")
    require(
        torch.cuda.is_available(), f"executor.gpus_per_worker: {gpus:g} asked for, and torch sees no GPU: set it to 0"
    )
    return torch.device("cuda")


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks for the next tensor: giving them back costs a page fault per 4 KiB, 15 % here."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        m_mmap_threshold, m_trim_threshold = -3, -1
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, 1 << 30)
