"""Handle SIGINT and SIGTERM: finish the step and save a checkpoint, or exit at once where nothing is to be saved."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 20.0
"""How long a step may take to end after a signal; service managers and schedulers kill after 30 s or more."""
_TWICE_S = 0.5
"""A second signal this soon is the same one: `timeout` sends one to its command and one to the group."""


class ShutdownRequest(threading.Event):
    """Tell whether SIGINT or SIGTERM was received; `signal` is its number, `since` its time on the monotonic clock."""

    signal = 0
    since = 0.0


_current: ShutdownRequest | None = None
"""Of the innermost `graceful_shutdown`."""


def acknowledge(number: int) -> None:
    """Say on standard error that a signal has come, and what comes next."""
    with suppress(RuntimeError):  # the signal came while something else was being printed
        again = "press Ctrl-C again" if number == signal.SIGINT else "send the signal again"
        sys.stderr.write(f"stopping after this step or shard of tasks; {again} to end now\n")
        sys.stderr.flush()


@contextmanager
def graceful_shutdown(say: Callable[[int], None] = acknowledge) -> Iterator[ShutdownRequest]:
    """Note the first SIGINT or SIGTERM within the block, for the caller to act on; exit at once on the second.

    say: called with the number of the first. In another thread than the main one, which alone may handle signals,
    none is noted.
    """
    global _current
    outer, request = _current, ShutdownRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.is_set():
            if time.monotonic() - request.since > _TWICE_S:
                sys.exit(128 + number)
            return
        request.signal, request.since = number, time.monotonic()
        request.set()
        say(number)

    _current = request
    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        _current = outer
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_is_overdue(grace_s: float = GRACE_S) -> bool:
    """Tell whether a signal to stop came more than `grace_s` ago: what is being computed is to be left undone."""
    return _current is not None and _current.is_set() and time.monotonic() - _current.since > grace_s


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back within the block; the first of them is handled after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def exit_on_signals() -> None:
    """Unwind the stack and exit with 128 + its number on a signal, as long as nothing is to be saved."""
    first: list[float] = []

    def leave(number: int, frame: FrameType | None) -> None:
        first.append(time.monotonic())
        if 0 < first[-1] - first[0] < _TWICE_S:
            return
        with suppress(RuntimeError):  # the signal came while something else was being printed
            sys.stderr.write(f"metatrain: ended by {signal.Signals(number).name}\n")
            sys.stderr.flush()
        sys.exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, leave)
