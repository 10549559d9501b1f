"""The page about runs in a real browser: headless Chromium, which can resolve no name."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metatrain import report, runs
from metatrain.tracking.jsonl import JsonlRecorder
from metatrain.trainer import new_run, run
from metatrain.training.in_process import InProcess
from metatrain.training.worker import driver_worker
from tests.browsing import browse, probed
from tests.configurations import tiny
from tests.report_pages import SECTIONS, Page, evil


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> list[Path]:
    """Two finished runs."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        config = tiny(f"runs={{root: {root}, name: {name}}}")
        home = new_run(config)
        recorder = JsonlRecorder(home.metrics)
        worker = driver_worker(config)
        run(worker, InProcess(worker), recorder, home)
        recorder.close("finished")
    return sorted(root.iterdir())


@pytest.mark.parametrize("several", [False, True])
def test_a_browser_without_a_network_shows_the_whole_page(made, browser, tmp_path, several):
    homes = [runs.open_run(path) for path in made[: 1 + several]]
    page = report.write(homes, tmp_path / "page.html")
    done = browse(browser, page, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in done.stderr, "an error, or something that the page's policy refused"
    shown = Page(done.stdout)
    assert [section["id"] for section in shown.all("section")] == SECTIONS
    for width in (1280, 400):
        seen = probed(browser, page, tmp_path, width)
        assert seen["pictures"] and all(seen["pictures"])
        assert seen["asked_for"] == []
        assert len(seen["charts"]) == (5 if several else 3) and min(seen["charts"]) > 300
        assert seen["wide"] <= seen["window"] == width, "what is wide scrolls by itself"


def test_a_page_looks_like_something_in_light_and_dark(made, browser, tmp_path):
    page = report.write([runs.open_run(made[0])], tmp_path / "page.html")
    grounds = []
    for dark in (0, 1):
        out = tmp_path / f"{dark}.png"
        options = (
            f"--blink-settings=preferredColorScheme={1 - dark}",
            "--window-size=1280,2400",
            f"--screenshot={out}",
        )
        browse(browser, page, tmp_path / "profile", *options)
        with Image.open(out) as picture:
            pixels = np.asarray(picture.convert("L"), dtype=int)
        ground = int(np.bincount(pixels.reshape(-1)).argmax())
        assert 0.03 < (abs(pixels - ground) > 40).mean() < 0.6
        assert len(np.unique(pixels)) > 100
        grounds.append(ground)
    assert grounds[0] > 240 and grounds[1] < 40


def test_an_evil_run_runs_nothing_in_a_browser(made, browser, tmp_path):
    page = report.write([runs.open_run(evil(Path(shutil.copytree(made[0], tmp_path / "run"))))], tmp_path / "page.html")
    page.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text()))
    done = browse(browser, page, tmp_path / "profile", "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]
    assert "metatrain report" in title, "without the page's policy, too"
    assert "CONSOLE" not in done.stderr
