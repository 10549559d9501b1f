"""Let rank 0, the command that started it and Ray Train know of each other."""

import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import ControllerCallback  # Train has no public one for a resize
from ray.train.v2._internal.execution.controller.state import ResizingState

_LOOK_S = 0.3
_SILENT_S = 10.0
"""Seconds without a sign of life after which rank 0 is not waited for."""


class Contact:
    """The actor through which rank 0, which asks all the time, and the others know of each other."""

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._stopping = self._pausing = self._training = False
        self._attempts, self._outcome = 0, (False, None)
        self._heard = 0.0

    def begin(self) -> int:
        """Count a start of the ranks."""
        self._attempts += 1
        self._pausing, self._training, self._heard = False, True, time.monotonic()
        return self._attempts

    def is_done(self) -> bool:
        """Tell whether an outcome is there: a rank that was lost after it is nobody's loss."""
        return bool(self._outcome[0])

    def tell(self, message: Any) -> None:
        """Keep a message for the command."""
        self._messages.append(message)

    def end(self, outcome: Any) -> None:
        """Keep what rank 0 has returned: an outcome, or None where it has paused."""
        self._training = False
        if outcome is not None:
            self._outcome = (True, outcome)

    def asked(self) -> tuple[bool, bool]:
        """Tell rank 0, which shows so that it lives, whether to stop and whether to pause."""
        self._heard = time.monotonic()
        self._messages.append(None)
        return self._stopping, self._pausing

    def pause(self) -> bool:
        """Have rank 0 pause; tell whether it is still training."""
        self._pausing = True
        return self._training and time.monotonic() - self._heard < _SILENT_S

    def look(self, stopping: bool) -> tuple[list[Any], bool, Any]:
        """Return the messages since the last call, None for a sign of life, and (done, outcome)."""
        self._stopping = stopping
        messages, self._messages = self._messages, []
        return messages, *self._outcome


class PauseRanks(ControllerCallback):
    """Has healthy ranks pause before Train ends them, so that the next ones go on from their last step."""

    def __init__(self, contact: Any) -> None:
        self._contact = contact

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Wait for the pause, as long as rank 0 shows that it lives."""
        if isinstance(current_state, ResizingState):
            with suppress(RayError):  # the command has gone, and everything with it
                while ray.get(self._contact.pause.remote()):
                    time.sleep(_LOOK_S)
