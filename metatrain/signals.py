"""Handle SIGINT and SIGTERM: finish the step and save a checkpoint, or exit at once where nothing is to be saved."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ShutdownRequest(threading.Event):
    """Tell whether SIGINT or SIGTERM was received; `signal` is its number."""

    signal = 0


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
    request = ShutdownRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.is_set():
            sys.exit(128 + number)
        request.signal = number
        request.set()
        say(number)

    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
    for number in SIGNALS:
        signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    with suppress(RuntimeError):  # the signal came while something else was being printed
        sys.stderr.write(f"metatrain: ended by {signal.Signals(number).name}\n")
        sys.stderr.flush()
    sys.exit(128 + number)
