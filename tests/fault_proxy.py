"""An HTTP proxy before one server that fails on purpose, and as its seed has it.

Run as `python -m tests.fault_proxy --help`, it is a process of its own, until SIGTERM.
"""

import argparse
import http.client
import json
import random
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "upgrade"}
ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>as asked for</Message></Error>"


@dataclass(frozen=True)
class Faults:
    """Parts of all requests, at most one to each request; together at most 1.

    refuse: not forwarded, answered 503 SlowDown or 500 InternalError. lose: forwarded, then cut off without an answer.
    cut: forwarded, then cut off after half of the answer's body (which is all of an empty one). stall: kept for
    stall_seconds before it is forwarded.
    """

    refuse: float = 0.0
    lose: float = 0.0
    cut: float = 0.0
    stall: float = 0.0
    stall_seconds: float = 2.0


class Request(NamedTuple):
    method: str
    path: str
    fault: str
    status: int
    """What the server said, even where the client never heard it; with "refuse", what the proxy said."""


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class FaultProxy:
    """Serves from its own threads as soon as it is made; `faults` may be replaced at any time."""

    def __init__(self, target: str, faults: Faults, seed: int, log: TextIO | None = None) -> None:
        self.faults = faults
        self._target, self._log = urlsplit(target).netloc, log
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._requests: list[Request] = []
        self._closing = threading.Event()
        self._server = _Server(self)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def requests(self) -> list[Request]:
        """Those so far, in the order in which they were answered; each is here before its client has the answer."""
        with self._lock:
            return list(self._requests)

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def draw(self) -> tuple[str, int]:
        """The next request's fault, or "", and the status to refuse it with."""
        with self._lock:
            # One number a request, whatever the faults are: replacing them does not change what is drawn later.
            drawn, faults = self._random.random(), self.faults
        for name in ("refuse", "lose", "cut", "stall"):
            part = getattr(faults, name)
            if drawn < part:
                return name, 503 if drawn < part / 2 else 500
            drawn -= part
        return "", 0

    def stall(self) -> None:
        self._closing.wait(self.faults.stall_seconds)

    def record(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)
            if self._log is not None:
                print(json.dumps(request._asdict()), file=self._log, flush=True)

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", self._target)
            for name, value in headers:
                # The body is here already: to wait for leave to send it has no more sense.
                if name.lower() not in HOP_BY_HOP | {"host", "expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: "_Server"

    def _handle(self) -> None:
        proxy, path = self.server.proxy, urlsplit(self.path).path
        fault, status = proxy.draw()
        # Read even where it is refused, since the next request comes on the same connection.
        body = self._body()
        if fault == "refuse":
            proxy.record(Request(self.command, path, fault, status))
            return self._refuse(status)
        if fault == "stall":
            proxy.stall()
        try:
            answer = proxy.forward(self.command, self.path, self.headers.items(), body)
        except (OSError, http.client.HTTPException):
            proxy.record(Request(self.command, path, fault, 502))
            return self._refuse(502)
        proxy.record(Request(self.command, path, fault, answer.status))
        if fault == "lose":
            self.close_connection = True
            return None
        return self._answer(answer, cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = do_PATCH = _handle  # noqa: N815

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        # Or it would stay in the buffer, and the client would wait for it until it had enough of that.
        self.wfile.flush()
        return True

    def _body(self) -> bytes:
        """As it came: the frames of a chunked one are left in it."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        raw = []
        while True:
            raw.append(self.rfile.readline())
            size = int(raw[-1].split(b";")[0], 16)
            if size == 0:
                break
            raw.append(self._read(size + 2))
        # Trailers, up to an empty line.
        while raw[-1].strip():
            raw.append(self.rfile.readline())
        return b"".join(raw)

    def _read(self, size: int) -> bytes:
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionResetError("the client has left in the middle of its request")
        return body

    def _refuse(self, status: int) -> None:
        code = {503: "SlowDown", 500: "InternalError"}.get(status, "BadGateway")
        body = ERROR.format(code=code).encode()
        length = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        self._answer(Answer(status, length, b"" if self.command == "HEAD" else body))

    def _answer(self, answer: Answer, cut: bool = False) -> None:
        self.send_response_only(answer.status)
        bodiless = self.command == "HEAD" or answer.status in (204, 304)
        for name, value in answer.headers:
            # The body was put together on its way here, so that it has a length now.
            dropped = HOP_BY_HOP | {"transfer-encoding"} | (set() if bodiless else {"content-length"})
            if name.lower() not in dropped:
                self.send_header(name, value)
        if not bodiless:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Clients that keep their connections would keep our threads waiting."""
        for connection in tuple(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is what tests are about."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--seed", type=int, required=True)
    for name, usual in vars(Faults()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=usual)
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args()
    faults = Faults(**{name: getattr(given, name) for name in vars(Faults())})
    # Before there are threads, so that none of them is given the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    with given.log.open("a") as log, FaultProxy(given.target, faults, given.seed, log) as proxy:
        # Renamed into place, so that nobody reads half of it.
        partial = given.port_file.with_name(f"{given.port_file.name}.partial")
        partial.write_text(str(proxy.port))
        partial.replace(given.port_file)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
