"""Resolve `auto` settings of the engine, from the configuration and the kind of device, never from timing."""

import shutil
from typing import Literal

import torch

AutoOnOff = Literal["auto", "on", "off"]

_MIN_STEPS_TO_COMPILE = 20_000
"""The inner steps from which compiling pays off: it takes half a minute or more, and saves milliseconds a step."""


def resolve_vectorize(
    setting: Literal["auto", "vmap", "loop"], convolves: bool, device: torch.device
) -> Literal["vmap", "loop"]:
    """Resolve `engine.vectorize`: "loop" for convolutions on a CPU, else "vmap".

    Under vmap a convolution with per-task weights becomes a grouped convolution, which on CPUs is ten times slower
    than a loop over tasks; everything else gains from batching.
    """
    if setting != "auto":
        return setting
    return "loop" if convolves and device.type == "cpu" else "vmap"


def resolve_compile(
    setting: AutoOnOff, adapts: bool, builtin: bool, inner_steps: int, device: torch.device
) -> Literal["on", "off"]:
    """Resolve `engine.compile`: on if an inner loop runs for enough steps to repay the time to compile it.

    adapts: the algorithm has an inner loop; without one, the forward and backward passes gain little.
    builtin: the run has no user code, which might branch on values.
    inner_steps: the number of them in the whole run, or on average in each of its phases, all of which are compiled.
    """
    if setting != "auto":
        return setting
    worth = adapts and builtin and inner_steps >= _MIN_STEPS_TO_COMPILE
    return "on" if worth and has_compiler(device) else "off"


def has_compiler(device: torch.device) -> bool:
    """Return whether this machine can compile for `device`: with a C++ compiler, or triton for a GPU."""
    if device.type == "cuda":
        from importlib.util import find_spec

        return find_spec("triton") is not None
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
