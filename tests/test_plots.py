import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from metatrain.evaluation.predictions import TaskPredictions
from metatrain.report import plots
from tasks.types import Episode, Examples

EVALUATION = {
    "split": "test",
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


def test_curves_draw_train_and_validation(tmp_path: Path) -> None:
    out = tmp_path / "plots" / "curves.png"
    plots.curves(training(tmp_path / "metrics.jsonl"), out)
    assert pixels(out).shape == (518, 1497, 3)
    assert colours(out, plots.TRAIN) > 500 and colours(out, plots.VALIDATION) > 500
    assert [path.name for path in out.parent.iterdir()] == ["curves.png"]


def test_the_interval_is_drawn(tmp_path: Path) -> None:
    inked = []
    for ci95 in (0.0, 0.2):
        lines = [{"step": step, "validation/accuracy": 0.5, "validation/ci95": ci95} for step in (1, 2, 3)]
        plots.curves(write(tmp_path / "m.jsonl", lines), tmp_path / "c.png")
        inked.append(int((pixels(tmp_path / "c.png").min(-1) < 250).sum()))
    assert inked[1] > inked[0] + 10_000


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 1, "train/loss": 1.0}],
        [{"step": 1, "train/loss": None}, {"step": 2, "train/loss": None}],
        [{"step": 1, "train/mse": 3.0, "train/loss": 3.0}, {"step": 1, "validation/mse": 2.0}],
        [{"step": step, "time/tasks_per_second": 5.0} for step in range(3)],
    ],
)
def test_curves_of_a_run_that_has_hardly_begun(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    plots.curves(write(tmp_path / "metrics.jsonl", lines), tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").shape[0] == 518


@pytest.mark.parametrize("score", ["accuracy", "mse"])
def test_adaptation(tmp_path: Path, score: str) -> None:
    plots.adaptation({**EVALUATION, "score": score}, tmp_path / "a.png")
    assert colours(tmp_path / "a.png", plots.VALIDATION) > 300


def test_adaptation_of_a_learner_without_inner_steps(tmp_path: Path) -> None:
    plots.adaptation({**EVALUATION, "curve": {"steps": [0], "mean": [0.9], "ci95": [0.1]}}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="as many means"):
        plots.adaptation({**EVALUATION, "curve": {"steps": [0, 1], "mean": [0.9], "ci95": [0.1]}}, tmp_path / "b.png")


def test_series_are_read_by_key_without_events(tmp_path: Path) -> None:
    lines = [{"step": 1, "a": 1.0, "b": None}, {"step": 1, "event": "retry", "text": "x"}, {"step": 2, "a": 2.0}]
    series = plots.read_series(write(tmp_path / "m.jsonl", lines))
    assert series.keys() == {"a", "b"}
    assert series["a"] == plots.Series([1, 2], [1.0, 2.0])
    assert math.isnan(series["b"].values[0])


def test_smoothing_is_a_centred_mean() -> None:
    assert plots.smoothed([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]
    assert plots.smoothed([1.0, 5.0], 1) == [1.0, 5.0]
    assert plots.smoothed([1.0, math.nan, 3.0], 3) == [1.0, 2.0, 3.0]


def test_long_curves_are_averaged_in_blocks() -> None:
    series = plots.Series(list(range(10)), [float(value) for value in range(10)])
    assert plots.thinned(series, 10) == series
    assert plots.thinned(series, 4) == plots.Series([1, 4, 7, 9], [1.0, 4.0, 7.0, 9.0])


def test_nothing_is_imported_before_it_is_needed_and_pyplot_never(tmp_path: Path) -> None:
    training(tmp_path / "m.jsonl")
    program = (
        "import sys; from pathlib import Path; from metatrain.report import plots; "
        "from metatrain.tracking import console, jsonl, mlflow_recorder\n"
        "assert not {'matplotlib', 'mlflow', 'rich'} & sys.modules.keys()\n"
        f"plots.curves(Path({str(tmp_path / 'm.jsonl')!r}), Path({str(tmp_path / 'c.png')!r}))\n"
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
def test_a_fit_is_drawn_in_order_of_x(tmp_path: Path, steps: int) -> None:
    plots.fit(fitted(steps), "waves, test task 0", tmp_path / "fit.png")
    drawn = colours(tmp_path / "fit.png", plots.FITTED[0])
    assert 200 < drawn < 20_000, "one line: joined up in the order they came, a hundred queries would fill the axes"
    with Image.open(tmp_path / "fit.png") as picture:
        assert "waves, test task 0" in picture.text["Description"]
        assert "5 support points" in picture.text["Description"]


def test_which_inner_steps_are_drawn() -> None:
    assert [plots.fitted_steps(last) for last in (0, 1, 3, 5, 10)] == [[0], [0, 1], [0, 1, 3], [0, 1, 5], [0, 1, 5, 10]]
    assert plots.fitted_steps(32) == [0, 1, 5, 10, 32]
