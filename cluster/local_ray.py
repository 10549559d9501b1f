"""Start a Ray cluster on this machine for the time of a run, notice when it is lost, and end it.

Its processes belong to a program of their own, `local_head.py`, which ends them when this process ends in any way.
"""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time

from cluster import local_head

_START_S = 90.0


class LocalRay:
    """The processes of a cluster of `cores` logical cores; they begin to start at once, `address` waits for them."""

    def __init__(self, cores: int) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", local_head.__file__, str(cores)],
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._output,
            start_new_session=True,
        )
        self.logs = ""
        """The folder of Ray's logs, once it has started."""

    def address(self) -> str:
        """Wait until the cluster can be joined; return its address. RuntimeError: it does not start."""
        until = time.monotonic() + _START_S
        while not (line := self._read(0.2)):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(self._last_line() or f"no answer for {_START_S:.0f} s")
        address, self.logs = line.split(maxsplit=1)
        return address

    def ended(self) -> str:
        """Return the process without which the cluster is of no use, and which has ended; empty if none has."""
        return self._read(0.0) or ("its parent" if self._process.poll() is not None else "")

    def stop(self) -> None:
        """Kill the cluster's processes, and wait for their end; may be called twice."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGSTOP)  # it may be starting more of them
            local_head.kill_others(self._process.pid)
            self._process.kill()
            self._process.wait()
            local_head.kill_until_none_is_left(self._process.pid)
        self._output.close()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self, seconds: float) -> str:
        """Return a line that the program has printed; empty without one."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return ""
        return self._process.stdout.readline().decode().strip()

    def _last_line(self) -> str:
        """Return the last line of what the program printed to its standard error."""
        self._output.seek(0)
        lines = [line for line in self._output.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""
