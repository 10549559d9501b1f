"""Hold the processes of a Ray cluster on this machine in a session of their own, until the driver ends. A program.

Signals to a terminal, a process group or a whole service reach the driver alone: it ends its step and then ends Ray.
Usage: python -P local_head.py CORES. Prints the cluster's address and its folder of logs, and later, if a process that
the cluster cannot do without ends, that one's name.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

NEEDED = ("gcs_server", "raylet")
_CHECK_S = 0.2


def main() -> None:
    """Start the cluster, print what is said above, and wait."""
    driver, cores = os.getppid(), int(sys.argv[1])
    # Ray's processes inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    threading.Thread(target=_end_with, args=(driver,), daemon=True).start()
    # What `ray start` and ray.init use; ray.init itself would make this process a driver as well.
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    # The autoscaler's monitor and the monitor of logs do nothing for one node, and take seconds to start.
    params: Any = RayParams(num_cpus=cores, include_dashboard=False, no_monitor=True)
    params.include_log_monitor = False
    node: Any = Node(params, head=True, shutdown_at_exit=False, spawn_reaper=True, ray_init_cluster=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    _say(f"{node.address} {node.get_logs_dir_path()}")
    while not (ended := [kind for kind, _ in node.dead_processes() if kind in NEEDED]):
        signal.sigtimedwait({signal.SIGCHLD}, _CHECK_S)
    kill_others(os.getpid())  # before they fill the driver's output with what they find
    _say(ended[0])
    while True:  # until the driver has read that
        time.sleep(_CHECK_S)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _end_with(driver: int) -> None:
    """End the whole session once the driver is gone: some of Ray's processes would wait a minute for others."""
    while os.getppid() == driver:
        time.sleep(_CHECK_S)
    kill_until_none_is_left(os.getpid())
    os._exit(0)


def kill_others(session: int) -> int:
    """Kill all processes of a session but its leader; return how many there were."""
    killed = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if int(entry.name) != session and os.getsid(int(entry.name)) == session and not _is_zombie(entry):
                os.kill(int(entry.name), signal.SIGKILL)
                killed += 1
    return killed


def kill_until_none_is_left(session: int, seconds: float = 2.0) -> None:
    """Kill all processes of a session but its leader, also those that others start meanwhile."""
    until = time.monotonic() + seconds
    while kill_others(session) and time.monotonic() < until:
        time.sleep(0.01)


def _is_zombie(process: Path) -> bool:
    return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


if __name__ == "__main__":
    main()
