"""A real browser without a window: Chromium, which can resolve no name and reaches this machine alone."""

import base64
import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError

from tests.report_pages import Page


def browse(browser: str, page: Path | str, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A headless browser on `page`, a file or an address of this machine."""
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    command += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    command += ["--enable-logging=stderr", page.absolute().as_uri() if isinstance(page, Path) else page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@contextmanager
def logged_in(uri: str, user: str, password: str) -> Iterator[str]:
    """An address of this machine where `uri` answers whoever asks as it does `user`: headless, nobody types a login."""
    login = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Passing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            kind = {"Content-Type": self.headers["Content-Type"]} if self.headers["Content-Type"] else {}
            body = self.rfile.read(length) if self.command == "POST" else None
            request = urllib.request.Request(uri + self.path, body, {"Authorization": login, **kind})
            try:
                answer = urllib.request.urlopen(request, timeout=30)
            except HTTPError as error:
                answer = error
            with answer:
                text = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        do_POST = do_GET  # noqa: N815 (as http.server calls it)

        def log_message(self, *said: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Passing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


PROBE = """<!doctype html><iframe width="{width}" height="800" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
const {{contentDocument: page, contentWindow: view}} = document.querySelector("iframe")
document.documentElement.dataset.found = JSON.stringify({{
  pictures: [...page.images].map(image => image.complete && image.naturalWidth > 0),
  asked_for: view.performance.getEntriesByType("resource").map(each => each.name).filter(it => !it.startsWith("data:")),
  charts: [...page.querySelectorAll(".chart > svg")].map(svg => svg.getBoundingClientRect().width),
  wide: page.documentElement.scrollWidth, window: view.innerWidth,
}})}})</script>"""
"""A window is never narrower than 500 pixels, a frame is."""


def probed(browser: str, page: Path, tmp_path: Path, width: int) -> dict:
    """What a script beside the page sees, which the page's own policy would not let run in it."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    (tmp_path / "probed.html").write_text(PROBE.format(width=width, page=escape(html)))
    done = browse(browser, tmp_path / "probed.html", tmp_path / "profile", "--dump-dom")
    return json.loads(Page(done.stdout).all("html")[0]["data-found"])
