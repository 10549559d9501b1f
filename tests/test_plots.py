import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy
import pytest
import torch
from PIL import Image

from metatrain.evaluation.predictions import TaskPredictions
from metatrain.report import figures
from metatrain.report.plots import BLUE, COLOURS, GREY, Chart, draw_panels, save_png, to_svg
from metatrain.report.series import Series, read_series, smooth, thin
from tasks.types import Episode, Examples

EVALUATION = {
    "split": "test",
    "learner": "trained",
    "score": "accuracy",
    "tasks": 600,
    "curve": {"steps": [0, 1, 2], "mean": [0.2, 0.8, 0.9], "ci95": [0.01, 0.02, 0.1]},
}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({"time": 0.0, **line}) + "\n" for line in lines))
    return path


def training(path: Path, steps: int = 200) -> Path:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "train/loss": 1 / step, "train/accuracy": 1 - 1 / step})
        if step % 50 == 0:
            validation = {"validation/loss": 2 / step, "validation/accuracy": 0.9, "validation/ci95": 0.05}
            lines += [{"step": step, **validation}, {"step": step, "event": "checkpoint", "text": "saved"}]
    return write(path, lines)


def pixels(picture: Path) -> numpy.ndarray[Any, Any]:
    with Image.open(picture) as image:
        return numpy.asarray(image.convert("RGB"))


def colours(picture: Path, colour: str) -> int:
    """How many pixels have exactly this colour."""
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return int((pixels(picture) == wanted).all(-1).sum())


def lines_of(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """What is drawn, by label."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_training_and_validation_are_drawn_with_the_interval_of_the_score(tmp_path: Path) -> None:
    chart = draw_panels(figures.training([("run", read_series(training(tmp_path / "metrics.jsonl")))]))
    loss, accuracy = chart.figure.axes
    raw = [1 / step for step in range(1, 201)]
    assert list(loss.lines[0].get_ydata()) == raw, "the raw values are behind"
    lines = lines_of(loss)
    assert lines["training"] == (list(range(1, 201)), smooth(raw, 8))
    assert lines["validation"] == ([50, 100, 150, 200], [2 / 50, 2 / 100, 2 / 150, 2 / 200])
    assert loss.get_yscale() == "log" and accuracy.get_yscale() == "linear"
    assert lines_of(accuracy)["validation"][1] == [90.0] * 4
    assert not loss.collections
    (band,) = accuracy.collections
    low, high = band.get_datalim(accuracy.transData).get_points()[:, 1]
    assert (low, high) == pytest.approx((85, 95))
    names = [text.get_text() for text in chart.figure.legends[0].get_texts()]
    assert names == ["training", "validation", "95 % interval"]
    assert "validation: from 90.00\xa0% to 90.00\xa0%, outer step 50 to 200" in chart.description


def test_a_png_file_has_the_description_and_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "plots" / "curves.png"
    chart = draw_panels(figures.training([("run", read_series(training(tmp_path / "metrics.jsonl")))]))
    save_png(chart, out)
    assert pixels(out).shape == (518, 1497, 3)
    assert colours(out, GREY) > 500 and colours(out, BLUE) > 500
    assert [path.name for path in out.parent.iterdir()] == ["curves.png"]
    with Image.open(out) as picture:
        assert picture.text["Description"] == chart.description


def test_letters_that_the_font_lacks_are_drawn_without_a_warning(tmp_path: Path) -> None:
    chart = draw_panels(figures.training([("run", read_series(training(tmp_path / "metrics.jsonl")))]))
    chart = chart._replace(title="日本 \U0001f426")
    save_png(chart, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").size


@pytest.mark.parametrize(
    ("lines", "titles"),
    [
        ([], []),
        ([{"step": 1, "train/loss": 1.0}], ["Loss"]),
        ([{"step": 1, "train/loss": None}, {"step": 2, "train/loss": None}], ["Loss"]),
        (
            [{"step": 1, "train/mse": 3.0, "train/loss": 3.0}, {"step": 1, "validation/mse": 2.0}],
            ["Mean squared error"],
        ),
        ([{"step": step, "time/tasks_per_second": 5.0} for step in range(3)], []),
    ],
)
def test_curves_of_a_run_that_has_hardly_begun(tmp_path: Path, lines: list[dict[str, Any]], titles: list[str]) -> None:
    panels = figures.training([("run", read_series(write(tmp_path / "metrics.jsonl", lines)))])
    assert [panel.title for panel in panels] == titles
    save_png(draw_panels(panels), tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").shape[0] == 518


def test_runs_are_drawn_side_by_side_with_looks_of_their_own(tmp_path: Path) -> None:
    series = read_series(training(tmp_path / "metrics.jsonl"))
    panels = figures.training([("_one", series), ("two", series), ("a" * 99, series)])
    assert [panel.title for panel in panels][:2] == ["Training: loss", "Validation: loss"]
    lines = draw_panels(panels[:1]).figure.axes[0].lines
    assert [line.get_label() for line in lines] == [" _one", "two", f"{'a' * 43}…"], "no raw values, and all named"
    assert len({line.get_color() for line in lines}) == len({str(line._dash_pattern) for line in lines}) == 3


def test_long_curves_are_thinned_for_drawing() -> None:
    steps = list(range(50_000))
    series = {"train/loss": Series(steps, [1 / (1 + step) for step in steps])}
    chart = draw_panels(figures.training([("run", series)]))
    assert [len(line.get_xdata()) for line in chart.figure.axes[0].lines] == [figures.POINTS] * 2
    assert len(to_svg(chart, "a")) < 200_000


@pytest.mark.parametrize("score", ["accuracy", "mse"])
def test_adaptation_is_drawn_by_inner_step(score: str) -> None:
    scale = 100 if score == "accuracy" else 1
    chart = figures.evaluation_chart({**EVALUATION, "score": score, score: 0.9, "ci95": 0.1})
    (axes,) = chart.figure.axes
    steps, means = lines_of(axes)["trained"]
    assert steps == [0, 1, 2] and means == pytest.approx([0.2 * scale, 0.8 * scale, 0.9 * scale])
    assert len(axes.collections) == 1, "the interval"
    assert "test, 600 tasks" in chart.title


def test_calibration_is_drawn_beside_adaptation() -> None:
    curve = {"predicted": [0.3, 0.5, 0.9], "observed": [0.2, 0.6, 0.8], "share": [0.5, 1e-4, 0.4999]}
    tested = {**EVALUATION, "accuracy": 0.9, "ci95": 0.1, "metrics": {"ece": {}}, "calibration": curve}
    chart = figures.evaluation_chart(tested)
    assert chart.figure.get_suptitle() == chart.title and chart.title.startswith("test, 600 tasks: 90.00")
    _, axes = chart.figure.axes
    assert lines_of(axes)["trained"] == ([30, 90], [20, 80]), "a bin with hardly a query is left out"
    assert lines_of(axes)["calibrated"] == ([0, 100], [0, 100])
    empty = {"predicted": [0.5], "observed": [0.5], "share": [0.0]}
    assert not figures.calibration("x", [("a", {**tested, "calibration": empty}), ("b", EVALUATION)])
    (panel,) = figures.calibration("x", [("a", {**tested, "metrics": {"quantile_error": {}}}), ("b", EVALUATION)])
    axes = draw_panels([panel]).figure.axes[0]
    assert axes.get_xlabel() == "predicted quantile (%)" and "b" not in lines_of(axes)


def test_a_learner_without_inner_steps_is_a_level_line() -> None:
    still = {**EVALUATION, "accuracy": 0.9, "ci95": 0.1, "curve": {"steps": [0], "mean": [0.9], "ci95": [0.1]}}
    axes = draw_panels([figures.adaptation("as trained", [("maml", EVALUATION), ("still", still)])]).figure.axes[0]
    assert lines_of(axes)["still, no inner steps"] == ([0, 2], [90.0, 90.0])
    assert lines_of(figures.evaluation_chart(still).figure.axes[0])["trained"] == ([0], [90.0])
    with pytest.raises(ValueError, match="as many means"):
        figures.adaptation("x", [("maml", {**still, "curve": {"steps": [0, 1], "mean": [0.9], "ci95": [0.1]}})])


def parse(svg: str) -> ElementTree.Element:
    """Read an inline SVG, whose namespaces HTML knows, as XML, which has to be told them."""
    return ElementTree.fromstring(str(svg).replace("<svg ", '<svg xmlns:xlink="x" ', 1))


@pytest.mark.parametrize("length", [3, 9, 14, 20, 30, 44])
def test_the_legend_has_room(length: int) -> None:
    """Six learners: none is cut off, whatever the length of their names."""
    curve = {"steps": [0], "mean": [0.9], "ci95": [0.1]}
    rows = [(f"{number}{'a run of a name' * 3}"[:length], {"score": "accuracy", "curve": curve}) for number in range(6)]
    figure = draw_panels([figures.adaptation("title", rows)]).figure
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_svg_is_self_contained_deterministic_and_has_identifiers_of_its_own() -> None:
    def draw() -> Chart:
        return draw_panels([figures.adaptation("as trained", [("maml", EVALUATION)])])

    one, other = to_svg(draw(), "one"), to_svg(draw(), "other")
    assert one == to_svg(draw(), "one")
    ids = [set(re.findall(' id="([^"]*)"', svg)) for svg in (one, other)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"(?:url\(|href=\")#([^\")]*)", one)) <= ids[0], "nothing of another chart"
    root = parse(one)
    assert root.get("role") == "img" and "maml: from" in root.get("aria-label", "")
    assert "<style" not in one and "<metadata" not in one and "http" not in one
    assert "var(--c1)" in one and not re.search('#[0-9a-f]{6}[;"]', one), "colours are the page's"
    assert "inner steps</text>" in one, "text stays text"


@pytest.mark.parametrize("text", ["</script><b>", "$x", "$\\frac$", "a$b$", "_hidden", "'\"&amp;", 'id="x" style="y"'])
def test_hostile_text_stays_text(text: str, tmp_path: Path) -> None:
    chart = draw_panels([figures.adaptation(text, [(text, EVALUATION), ("other", EVALUATION)])])
    root = parse(to_svg(chart, "a"))
    assert text in [(element.text or "").strip() for element in root.iter("text")]
    assert f"{text}: from" in root.get("aria-label", "")
    assert {element.tag for element in root.iter()} <= {"svg", "g", "path", "defs", "use", "text", "clipPath", "rect"}
    save_png(chart, tmp_path / "a.png")


def test_a_chart_is_drawn_of_any_values() -> None:
    nan = math.nan
    for values in ([5.0], [], [2.0, 2.0], [1e-6, 10.0], [nan], [1.0, nan, 3.0]):
        series = {"train/loss": Series(list(range(len(values))), values)}
        assert to_svg(draw_panels(figures.training([("run", series)])), "a").startswith("<svg")


def contrast(one: str, other: str) -> float:
    """Return the ratio of relative luminances (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_curves_stand_out_in_light_and_dark() -> None:
    style = (Path(figures.__file__).parent / "style.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(schemes) == 2
    assert COLOURS.items() <= schemes[0].items(), "the page names the colours that charts are drawn in"
    for scheme in schemes:
        for name in ("ink", "soft", "link"):
            assert min(contrast(scheme[name], scheme[ground]) for ground in ("paper", "panel")) >= 4.5, name
        assert min(contrast(scheme[f"c{n}"], scheme["paper"]) for n in range(8)) >= 4.5


def test_series_are_read_by_key_without_events(tmp_path: Path) -> None:
    lines = [{"step": 1, "a": 1.0, "b": None}, {"step": 1, "event": "retry", "text": "x"}, {"step": 2, "a": 2.0}]
    series = read_series(write(tmp_path / "m.jsonl", lines))
    assert series.keys() == {"a", "b"}
    assert series["a"] == Series([1, 2], [1.0, 2.0])
    assert math.isnan(series["b"].values[0])


def test_smoothing_is_a_centred_mean() -> None:
    assert smooth([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]
    assert smooth([1.0, 5.0], 1) == [1.0, 5.0]
    assert smooth([1.0, math.nan, 3.0], 3) == [1.0, 2.0, 3.0]


def test_long_curves_are_averaged_in_blocks() -> None:
    series = Series(list(range(10)), [float(value) for value in range(10)])
    assert thin(series, 10) == series
    assert thin(series, 4) == Series([1, 4, 7, 9], [1.0, 4.0, 7.0, 9.0])


def test_nothing_is_imported_before_it_is_needed_and_pyplot_never(tmp_path: Path) -> None:
    training(tmp_path / "m.jsonl")
    program = (
        "import sys; from pathlib import Path; from metatrain.report import figures, plots; "
        "from metatrain.report.series import read_series; "
        "from metatrain.tracking import console, jsonl, mlflow_recorder\n"
        "assert not {'matplotlib', 'mlflow', 'rich'} & sys.modules.keys()\n"
        f"series = read_series(Path({str(tmp_path / 'm.jsonl')!r}))\n"
        f"plots.save_png(plots.draw_panels(figures.training([('', series)])), Path({str(tmp_path / 'c.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def fitted(steps: int) -> TaskPredictions:
    """A sine, fitted by itself times step / steps; the queries in no order."""
    x = torch.linspace(-3, 3, 100)[torch.randperm(100, generator=torch.Generator().manual_seed(0))][:, None]
    support = Examples(x[:5], x[:5].sin())
    grown = [x.sin() * (step / max(1, steps)) for step in range(steps + 1)]
    return TaskPredictions(Episode(support, Examples(x, x.sin())), torch.stack(grown))


@pytest.mark.parametrize("steps", [0, 1, 3, 10, 20])
def test_a_fit_is_drawn_in_order_of_x(steps: int) -> None:
    chart = figures.fit(fitted(steps), "waves, test task 0")
    lines = lines_of(chart.figure.axes[0])
    assert list(lines) == [
        "target",
        *(label for label in lines if " mse " in label),
        "5 support points",
    ]
    assert len(lines) == 2 + len(figures.fitted_steps(steps))
    for label, (x, _) in lines.items():
        assert x == sorted(x) or label == "5 support points", "joined in the order they came, a curve is a scribble"
    last = next(y for label, (_, y) in lines.items() if label.startswith(f"{steps} step"))
    assert last == pytest.approx(lines["target"][1] if steps else [0.0] * 100)
    assert "waves, test task 0" in chart.description and "5 support points" in chart.description


def test_which_inner_steps_are_drawn() -> None:
    assert [figures.fitted_steps(last) for last in (0, 1, 3, 5, 10)] == [
        [0],
        [0, 1],
        [0, 1, 3],
        [0, 1, 5],
        [0, 1, 5, 10],
    ]
    assert figures.fitted_steps(32) == [0, 1, 5, 10, 32]
