"""Ctrl-C and its like: noted at once, honoured when the step is done, so that nothing is lost."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(threading.Event):
    """Set by SIGINT or SIGTERM; `signal` says which."""

    signal = 0


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within it the first SIGINT or SIGTERM is noted, to be honoured after the step; the second ends at once."""
    interruption = Interruption()

    def note(number: int, frame: FrameType | None) -> None:
        if interruption.is_set():
            sys.exit(128 + number)
        interruption.signal = number
        interruption.set()

    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_at_once() -> None:
    """Until something is there to be lost: a signal unwinds the stack and exits with 128 + its number."""
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
