"""What `auto` means: decided once, on the driver, from the configuration and the kind of device, never from timing."""

import shutil
from typing import Literal

import torch

AutoOnOff = Literal["auto", "on", "off"]

_MIN_TASKS_TO_COMPILE = 20_000
"""Tasks from which on compiling has paid for itself: a minute at most, against milliseconds a task."""


def resolve_vectorize(
    setting: Literal["auto", "vmap", "loop"], convolves: bool, device: torch.device
) -> Literal["vmap", "loop"]:
    """`auto`, resolved from shapes and device kind alone.

    Under vmap a convolution whose weights differ by task becomes a grouped one, which CPUs do ten times slower than
    one after another; everything else gains from a batch.
    """
    if setting != "auto":
        return setting
    return "loop" if convolves and device.type == "cpu" else "vmap"


def resolve_compile(
    setting: AutoOnOff, adapts: bool, builtin: bool, tasks: int, device: torch.device
) -> Literal["on", "off"]:
    """`auto`, resolved: on where an inner loop is computed for at least as many tasks as earn the time to compile it.

    adapts: the algorithm has an inner loop; without one, a network's forward and backward pass gain little.
    builtin: no part of the run is the user's own, which may branch on values.
    tasks: how many the whole run computes.
    """
    if setting != "auto":
        return setting
    worth = adapts and builtin and tasks >= _MIN_TASKS_TO_COMPILE
    return "on" if worth and has_compiler(device) else "off"


def has_compiler(device: torch.device) -> bool:
    """Whether this machine has what compiling for `device` takes: a C++ compiler, or triton for a GPU."""
    if device.type == "cuda":
        from importlib.util import find_spec

        return find_spec("triton") is not None
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
