"""The command line as a process of its own, without its seconds of imports: a server forks once for each request.

Run as `python -m tests.command_line`, it reads a request a line (JSON) and answers each with a line: the exit code, or
124 for out of time.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
OUT_OF_TIME = 124


class Done(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float


class CommandLine:
    """`metatrain ARGUMENTS` in a folder, as often as one likes."""

    def __init__(self, scratch: Path) -> None:
        self._out, self._err = scratch / "out", scratch / "err"
        self._cache = {"METATRAIN_CACHE": str(scratch / "cache")}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.command_line"],
            cwd=ROOT,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, folder: Path, *arguments: str, largest_file: int = -1, seconds: float = 300) -> Done:
        """largest_file: bytes beyond which no file can grow, as on a disk that is full."""
        began = time.monotonic()
        request = {"folder": str(folder), "arguments": arguments, "largest_file": largest_file, "seconds": seconds}
        request |= {"out": str(self._out), "err": str(self._err), "environment": self._cache | dict(os.environ)}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        code = int(self._server.stdout.readline())
        return Done(code, self._out.read_text(), self._err.read_text(), time.monotonic() - began)

    def close(self) -> None:
        self._server.communicate(timeout=30)


@functools.cache
def shared_command_line() -> CommandLine:
    """The one of this test process: it lives until the process ends."""
    folder = tempfile.TemporaryDirectory()
    line = CommandLine(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(line.close)
    return line


def metatrain(folder: Path, *arguments: str, expect: int = 0) -> Done:
    """Run `metatrain ARGUMENTS` in a folder; it has to end with the exit code `expect`."""
    done = shared_command_line()(folder, *arguments)
    assert done.code == expect, f"{done.code}: {done.err}"
    return done


def last_json(done: Done) -> dict:
    return json.loads(done.out.splitlines()[-1])


def process_arguments(*arguments: str) -> list[str]:
    """Of `metatrain ARGUMENTS` as a process of its own, for one that is sent signals."""
    return [sys.executable, "-m", "metatrain", *arguments]


_IMPORTED_ONCE = (
    *(
        f"metatrain.cli.{name}"
        for name in (
            "ablation",
            "comparison",
            "data",
            "evaluation",
            "inspect",
            "jobs",
            "search",
            "submission",
            "training",
        )
    ),
    *(
        "metatrain.tracking.mlflow_recorder",
        "metatrain.report.page",
        "metatrain.report.comparison_page",
        "tune.report.page",
    ),
    *("typer.rich_utils", "torch._dynamo", "matplotlib.backends.backend_agg", "matplotlib.pyplot", "torchvision"),
)
"""What commands import on their way, in seconds: the first optimiser imports torch._dynamo, a chart matplotlib."""


def serve() -> None:
    for module in _IMPORTED_ONCE:
        importlib.import_module(module)

    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
        print(_exit_code(child, request["seconds"]), flush=True)


def _become(request: dict) -> None:
    """This forked process becomes `metatrain ARGUMENTS`."""
    os.setsid()
    atexit._clear()  # what the server's own modules have to do at its end
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for descriptor, path in enumerate((os.devnull, request["out"], request["err"])):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags), descriptor)
    if request["largest_file"] >= 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], resource.RLIM_INFINITY))
    from metatrain.cli import main

    sys.argv = ["metatrain", *request["arguments"]]
    sys.path[0] = ""
    try:
        main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 what Python itself would do
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _exit_code(child: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return OUT_OF_TIME


if __name__ == "__main__":
    serve()
