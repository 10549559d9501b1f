"""A real browser without a window: Chromium, which can resolve no name and reaches this machine alone."""

import json
import re
import subprocess
from html import escape
from pathlib import Path

from tests.report_pages import Page


def browse(browser: str, page: Path | str, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A headless browser on `page`, a file or an address of this machine."""
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    command += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    command += ["--enable-logging=stderr", page.absolute().as_uri() if isinstance(page, Path) else page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


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
