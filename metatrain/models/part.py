"""Modules that a method adds to the network, such as a relation module or an encoder, as pure functions."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from metatrain.models.model import BUILDING
from metatrain.types import Params
from metatrain.validation import require

_MAX_BUILT = 64
"""Modules that a thread keeps: a run uses one or a few."""


class _Built(threading.local):
    """The calling thread's modules: `functional_call` puts parameters into a module for as long as it runs."""

    def __init__(self) -> None:
        self.modules: dict[Hashable, nn.Module] = {}


_built = _Built()


@dataclass(frozen=True)
class Part:
    """A module as a pure function of the parameters whose names begin with `prefix`, such as "relation.".

    build: makes the module; equal values make equal modules: a bound method of a frozen dataclass of settings, or
    `functools.partial` of a class and its sizes. The module has no buffers.
    """

    prefix: str
    build: Callable[[], nn.Module]

    def initial(self, seed: int) -> Params:
        """Return the initial parameters, under their full names, as determined by `seed`."""
        with BUILDING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.build()
        buffers = [name for name, _ in module.named_buffers()]
        require(not buffers, f"{self.prefix}: the module has buffers ({', '.join(buffers[:3])}): remove them")
        return {self.prefix + name: value.detach().clone() for name, value in module.named_parameters()}

    def __call__(self, params: Params, *inputs: Any) -> Any:
        """Apply the module at its parameters within `params`; the others are ignored."""
        given = {name.removeprefix(self.prefix): p for name, p in params.items() if name.startswith(self.prefix)}
        return functional_call(self._module(), given, inputs, strict=True)

    def _module(self) -> nn.Module:
        built, build = _built.modules, self.build
        # Two partials are never equal.
        key = (build.func, build.args, *sorted(build.keywords.items())) if isinstance(build, partial) else build
        if key not in built:
            if len(built) >= _MAX_BUILT:
                built.clear()
            # In a thread of its own, where no transform of the caller (vmap, grad, tracing) takes part.
            with ThreadPoolExecutor(1) as outside:
                built[key] = outside.submit(self._build_without_values).result()
        return built[key]

    def _build_without_values(self) -> nn.Module:
        """Build the module on the meta device: its own values are never read."""
        with torch.device("meta"):
            return self.build()
