"""Charts as geometry, and the colours they are drawn in."""

import json
import re
from pathlib import Path

from metatrain import report, runs
from metatrain.config.load import as_yaml
from metatrain.report.charts import Curve, chart
from metatrain.report.collect import collect
from metatrain.report.page import render
from tests.configurations import tiny
from tests.report_pages import Page


def test_long_curves_are_thinned(tmp_path):
    home = runs.create_run(tmp_path, "long", as_yaml(tiny("outer.steps=50000")), runs.describe_environment())
    with home.metrics.open("w") as file:
        for step in range(1, 50_001):
            line = {"step": step, "time": step, "train/loss": 1 / step, "train/accuracy": 1 - 1 / step}
            if step % 20 == 0:
                line |= {"validation/loss": 0.5, "validation/accuracy": 0.5, "validation/ci95": 0.1}
            file.write(json.dumps(line) + "\n")
    html = render([collect(home)])
    assert len(html) < 1_000_000
    curves = [tag["d"] for tag in Page(html).all("path") if tag.get("class", "").startswith(("curve", "band"))]
    assert max(len(re.findall("[ML]", d)) for d in curves) <= 2001


def test_a_chart_breaks_its_line_and_keeps_within_its_box():
    nan = float("nan")
    drawn = chart("t", "x", [Curve("a", 1, [1, 2, 3, 4], [1.0, nan, 3.0, 2.0], [0.1, 0.1, 0.1, nan])])
    assert drawn.curves[0].line.count("M") == 2
    assert len(drawn.curves[0].dots) == 3
    numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", drawn.curves[0].line + drawn.curves[0].band)]
    assert all(0 <= n <= 400 for n in numbers)
    wide = chart("t", "x", [Curve("a", 1, [1, 2], [0.01, 1.0], [0.5, 0.5])], log=True).curves[0].band
    assert all(0 <= float(n) <= 400 for n in re.findall(r"-?\d+\.\d+", wide)), "an interval may reach below zero"
    for values, log in (([5.0], False), ([], False), ([2.0, 2.0], True), ([1e-6, 10.0], True), ([nan], False)):
        found = chart("t", "x", [Curve("a", 1, list(range(len(values))), values)], log=log)
        assert len(found.y_ticks) >= 1
    assert [tick.label for tick in chart("t", "x", [Curve("a", 1, [0, 60_000], [0, 1])]).x_ticks][-1] == "60k"


def contrast(one: str, other: str) -> float:
    """The ratio of relative luminances (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_words_and_curves_stand_out_in_light_and_dark():
    style = (Path(report.__file__).parent / "style.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(schemes) == 2
    for scheme in schemes:
        for name in ("ink", "soft", "link"):
            assert min(contrast(scheme[name], scheme[ground]) for ground in ("paper", "panel")) >= 4.5, name
        assert min(contrast(scheme[f"c{n}"], scheme["paper"]) for n in range(8)) >= 4.5
