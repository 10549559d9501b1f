"""Apply one model in several threads: `functional_call` puts parameters into the module for as long as it runs."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from weakref import WeakKeyDictionary

from torch import nn

from metatrain.models.model import Model

_COPIED = ("torch.", "torchvision.", "metatrain.")
"""Packages whose modules a copy stands for. A user's may refer to itself, so that a copy would call the original."""


class _Copies(threading.local):
    """The calling thread's copy of each module."""

    def __init__(self) -> None:
        self.of: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


_copies = _Copies()
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_adding_lock = threading.Lock()


@contextmanager
def alone(model: Model) -> Iterator[Model]:
    """Give the same model, with modules that no other thread applies meanwhile.

    Each thread has copies of its own, which share the tensors of the originals; a user's module is applied by one
    thread at a time.
    """
    modules = [model.body] if model.head is None else [model.body, model.head]
    if all(f"{type(part).__module__}.".startswith(_COPIED) for module in modules for part in module.modules()):
        body, *head = map(_copy, modules)
        yield replace(model, body=body, head=head[0] if head else None)
    else:
        with _adding_lock:
            lock = _locks.setdefault(model.body, threading.RLock())
        with lock:
            yield model


def _copy(module: nn.Module) -> nn.Module:
    if module not in _copies.of:
        shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        _copies.of[module] = copy.deepcopy(module, shared)
    return _copies.of[module]
