"""The page about runs: what it says, that it says it safely, and where it is kept."""

import json
import re
import shlex
import shutil
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from metatrain import report, runs
from metatrain.config.load import as_yaml
from metatrain.report.collect import collect, read_metrics
from metatrain.report.metadata import commands, headline, timing
from metatrain.report.page import drawn_runs
from metatrain.report.text import best_step, comparison, summary
from metatrain.runs import checkpoints
from metatrain.testing import evaluation_name
from tests.command_line import metatrain
from tests.configurations import TINY, tiny
from tests.report_pages import EVIL, SECTIONS, Page, edit, evil, page_of


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[Path]]:
    """A folder and two finished runs in it, the first tested once more."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    for name, rate in (("first", "1e-2"), ("second", "2e-2")):
        metatrain(folder, "train", "tiny.yaml", f"runs.name={name}", f"outer.lr={rate}")
    paths = sorted((folder / "runs").iterdir())
    metatrain(folder, "evaluate", str(paths[0]), "tasks.test.ways=2", "evaluation.tasks=6")
    return folder, paths


@pytest.fixture
def copied(made, tmp_path) -> Path:
    """The first run, to be changed."""
    return Path(shutil.copytree(made[1][0], tmp_path / "run", ignore=shutil.ignore_patterns("report.html")))


def test_the_lines_of_a_long_run_are_not_kept_beside_its_series(tmp_path):
    steps, path = 5000, tmp_path / "metrics.jsonl"
    line = {"time": 1.5, "train/loss": 0.25, "train/mse": 0.5}
    path.write_text("".join(json.dumps({"step": step, **line}) + "\n" for step in range(1, steps + 1)))
    tracemalloc.start()
    series, events, clock = read_metrics(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (series["train/mse"].steps[-1], events, clock) == (steps, [], (1.5, 1.5))
    assert most < 200 * steps


def rows_of(found: dict) -> list[dict]:
    return [found["test"], found["test_inductive"], *found["baselines"]]


def test_one_run_by_the_command_line(made):
    folder, paths = made
    done = metatrain(folder, "report", str(paths[0].relative_to(folder)))
    assert done.out.strip() == str(paths[0].relative_to(folder) / "report.html")
    assert done.err == ""
    out = paths[0] / "report.html"
    assert out.stat().st_size < 1_000_000
    assert not list(paths[0].glob(".report*")), "written aside, then renamed"
    page = Page(out.read_text())
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert page.all("html") == [{"lang": "en"}]


def test_the_results_are_those_of_the_evaluations(made):
    _, (path, _) = made
    page = page_of(path)
    asked = ["tasks.test.ways=2", "evaluation.tasks=6"]
    for stem, name in (("test", "as trained"), (evaluation_name(asked), ", ".join(asked))):
        found = json.loads((path / "evaluations" / f"{stem}.json").read_text())
        assert found.get("overrides", []) == (asked if stem != "test" else [])
        assert name in page.text
        for row in rows_of(found):
            kind = "transductive" if row["transductive"] else "inductive"
            score = f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f} % {row['loss']:.4g}"
            over = "–" if row["ci95_classes"] is None else f"± {100 * row['ci95_classes']:.2f} %"
            score = score.replace(" % ", f" % {over} ")
            said = f"{score} {row['curve']['steps'][-1]} {row['tasks']} {kind}"
            assert said in page.text, said
    assert "the same network untrained" in page.text and "nearest neighbour" in page.text
    assert "meta-trained by maml on strokes for 6 steps of 6 tasks, 3-way 1-shot" in page.text
    assert "each: 36 tasks." in page.text


def test_evaluations_of_version_0_1_are_named_by_their_files(copied):
    for folder, suffix in (("evaluations", ".json"), ("plots", "-episode.png")):
        (new,) = (copied / folder).glob(f"test-????????{suffix}")
        new.rename(new.with_name(f"test-tasks.test.ways_2-evaluation.tasks_6{suffix}"))

    def as_before(found):
        found.pop("overrides", None)
        found.pop("test_inductive", None)
        for row in (found["test"], *found["baselines"]):
            del row["ci95_classes"], row["classes"]

    for file in (copied / "evaluations").iterdir():
        edit(file, as_before)
    page = page_of(copied)
    assert "Images of a test task, tasks.test.ways=2, evaluation.tasks=6" in page.text
    assert "over its" not in page.text


def test_what_is_to_be_typed_is_exact(made, tmp_path):
    path = made[1][0]
    said = dict(commands(collect(runs.open_run(path))))
    assert "Resume the training" not in said
    assert said["Train a new run with the same settings"] == f"metatrain train {path}/config.yaml"
    unfinished = Path(shutil.copytree(path, tmp_path / "a run's"))
    shutil.rmtree(unfinished / "checkpoints" / "00000006")
    said = dict(commands(collect(runs.open_run(unfinished))))
    typed = shlex.split(said["Resume the training"])
    assert typed == ["metatrain", "train", "--resume", str(unfinished)]
    metatrain(tmp_path, *typed[1:])
    learned: dict = {}
    exec(said["Use it in Python"], learned)
    assert learned["learner"].params


def test_several_runs_are_drawn_together_in_the_order_given(made):
    folder, (one, other) = made
    done = metatrain(folder, "report", str(other), str(one))
    assert done.out.strip() == "report.html"
    page = Page((folder / "report.html").read_text())
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert page.text.index("second, as trained") < page.text.index("first, as trained")
    assert "outer.lr 0.02 0.01" in page.text
    assert "Tested on the same 8 tasks, best first by accuracy" in page.text
    titles = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    assert [title.split(" by ")[0] for title in titles][:4] == [
        "Training: loss",
        "Validation: loss",
        "Training: accuracy (%)",
        "Validation: accuracy (%)",
    ]
    assert all("second: from" in title and "first: from" in title for title in titles[:5])
    again = page_of(one, one)
    assert again.text.count(runs.open_run(one).run_id) > 4, "two of one name are told apart by their ids"


def test_of_many_runs_the_best_are_drawn_and_the_tables_have_all(made, copied, tmp_path, monkeypatch):
    _, (one, other) = made
    edit(copied / "evaluations" / "test.json", lambda found: found["test"].update(accuracy=0.999))
    (copied / "config.yaml").write_text((copied / "config.yaml").read_text().replace("name: first", "name: best"))
    monkeypatch.setattr(report.page, "MOST_DRAWN", 1)
    homes = [runs.open_run(path) for path in (one, copied, other)]
    page = Page(report.write(homes, tmp_path / "page.html").read_text())
    assert page.text.count("Drawn are 1 of the 3 runs: those with the best results in their final test.") == 4
    curves = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    assert curves and not any("first" in title or "second" in title for title in curves)
    assert len(page.all("img")) == len(collect(homes[1]).pictures)
    for name in ("first", "best", "second"):
        assert f"{name}, as trained" in page.text and f"All settings of {name}" in page.text


def test_the_curves_of_runs_that_are_not_drawn_are_not_kept(made, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(report.page, "MOST_DRAWN", 1)
    monkeypatch.setattr(report.page, "render", lambda records: shown.extend(records) or "")
    homes = [runs.open_run(path) for path in made[1]]
    report.write(homes, tmp_path / "page.html")
    whole = list(map(collect, homes))
    (drawn,) = drawn_runs(whole)
    assert shown[drawn] == whole[drawn]
    assert not any(key.startswith("train/") for key in shown[1 - drawn].series)
    for told in (timing, headline, best_step):
        assert told(shown[1 - drawn]) == told(whole[1 - drawn])


def test_charts_and_pictures_say_in_words_what_they_show(made):
    page = page_of(made[1][0])
    charts = [svg["aria-label"] for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert [title.split(" by ")[0] for title in charts] == [
        "Loss",
        "Accuracy (%)",
        "Accuracy (%), as trained",
        "Accuracy (%), tasks.test.ways=2, evaluation.tasks=6",
        "Calibration, as trained",
        "Calibration, tasks.test.ways=2, evaluation.tasks=6",
    ]
    assert "validation: from" in charts[1] and "outer step 3 to 6" in charts[1]
    assert "calibrated: from 0.00" in charts[4]
    alts = [image["alt"] for image in page.all("img")]
    assert len(alts) == 2 and all("queries right" in alt for alt in alts)
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert all(header.get("scope") in ("col", "row", "rowgroup") for header in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_a_learner_without_inner_steps_is_a_level_line(copied):
    def without_steps(found):
        found["test"]["curve"] = {"steps": [0], "mean": [0.5], "ci95": [0.1]}

    edit(copied / "evaluations" / "test.json", without_steps)
    (chart, *_) = [svg["aria-label"] for svg in page_of(copied).all("svg") if "as trained" in svg.get("aria-label", "")]
    assert "trained, no inner steps: from 50.00 % to 50.00 %, inner steps 0 to" in chart.replace("\xa0", " ")
    for file in (copied / "evaluations").iterdir():
        edit(file, lambda found: [without_steps({"test": row}) for row in rows_of(found)])
    assert "the trained learners take no inner steps" in page_of(copied).text


def test_a_run_that_has_hardly_begun_gives_a_page_that_says_so(tmp_path):
    home = runs.create_run(tmp_path, "young", as_yaml(tiny()), runs.describe_environment())
    page = page_of(home.path)
    assert "nothing recorded yet" in page.text
    assert "is to be meta-trained by maml on strokes for 6 steps" in page.text
    assert "metatrain evaluate" not in [command.split(" /")[0] for _, command in commands(collect(home))]
    assert "young has not been tested yet" not in page.text  # its configuration calls it "run"
    assert "run has not been tested yet" in page.text
    assert "run has recorded no metrics yet" in page.text
    assert f"metatrain train --resume {home.path}" in page.text
    lines = [{"step": 1, "time": 0.0, "train/loss": None}, {"step": 2, "time": 1.0, "train/loss": 1.0}]
    home.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "tr')
    page = page_of(home.path)
    assert "unfinished: 2 of 6 steps" in page.text
    home.metrics.write_text('{"step": 4, "time": 0.0, "time/tasks_per_second": 3.0}\n')
    assert "seconds in training steps 8" in page_of(home.path).text, (
        "four steps of six tasks, of which one was recorded"
    )
    assert "recorded no metrics" not in page.text
    assert [section["id"] for section in page.all("section")] == SECTIONS


def test_a_regression_is_told_in_its_own_score(copied):
    def as_regression(found):
        for rank, row in enumerate((found["test"], *found["baselines"])):
            row |= {"score": "mse", "mse": 0.25 + 1.25 * rank, "ci95": 0.01}

    edit(copied / "evaluations" / "test.json", as_regression)
    text = (copied / "metrics.jsonl").read_text().replace("/accuracy", "/mse")
    text = text.replace("validation/log_likelihood", "validation/other")
    (copied / "metrics.jsonl").write_text(text)
    page = page_of(copied)
    assert "a mean squared error of 0.250 ± 0.010" in page.text
    assert "1.25 better than the same network untrained, the best of these" in page.text
    charts = [svg["aria-label"].split(" by ")[0] for svg in page.all("svg") if "aria-label" in svg]
    assert charts[:1] == ["Mean squared error"] and "Loss" not in charts


def test_the_verdict_knows_what_may_be_chance(copied):
    def set_to(trained, untrained):
        def change(found):
            found["test"] |= {"accuracy": trained, "ci95": 0.05}
            found["baselines"] = [found["baselines"][0] | {"accuracy": untrained, "ci95": 0.05}]

        edit(copied / "evaluations" / "test.json", change)
        return " ".join(summary(collect(runs.open_run(copied))))

    assert "40.0 points better than the same network untrained" in set_to(0.8, 0.4)
    assert "40.0 points worse than the same network untrained" in set_to(0.4, 0.8)
    assert "no clear difference" in set_to(0.5, 0.45)


def test_runs_tested_on_other_tasks_are_not_ranked(made, copied):
    def ranked(*paths):
        return comparison([collect(runs.open_run(path)) for path in paths], [path.name for path in paths])

    other = made[1][1]
    assert "Tested on the same" in ranked(other, copied)
    config = copied / "config.yaml"
    for old, new in (("evaluation:\n  every: 3\n", "evaluation:\n  every: 2\n"), ("lr: 0.01", "lr: 0.5")):
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))
    assert "Tested on the same" in ranked(other, copied), "how it was trained is no matter"
    changed = yaml.safe_load(config.read_text())
    changed["tasks"]["test"]["shots"] = 2
    config.write_text(yaml.safe_dump(changed))
    assert "cannot be compared" in ranked(other, copied)


def test_the_best_step_is_the_one_that_the_driver_chose(made):
    for path in made[1]:
        home = runs.open_run(path)
        assert best_step(collect(home)) == checkpoints.newest(home.checkpoints).snapshot["best"]["step"]


@pytest.mark.parametrize("several", [False, True])
def test_nothing_of_a_run_becomes_markup(copied, made, several):
    paths = [evil(copied), *([made[1][1]] if several else [])]
    page = page_of(*paths)
    assert page.all("script") == []
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert page.text.count(EVIL) > 6, "and it is there to be read"
    assert EVIL in [image.get("alt") for image in page.all("img")]


def test_passwords_in_addresses_are_left_out(made, copied):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["tracking"]["uri"] = "https://me:s3cret@mlflow.example.com/x"
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    edit(copied / "environment.json", lambda found: found.update(command=["metatrain", "https://me:s3cret@a.b"]))
    for page in (page_of(copied), page_of(made[1][1], copied)):
        assert "s3cret" not in page.text
        assert "https://mlflow.example.com/x" in page.text


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml, line 1: not YAML"),
        (lambda run: (run / "environment.json").write_text("{"), "environment.json: not JSON"),
        (
            lambda run: (run / "evaluations" / "test.json").write_text('{"test": {}}'),
            "test.json: 'test.ci95' is missing",
        ),
        (lambda run: (run / "plots" / "x-fit.png").write_text("no"), "x-fit.png: no picture"),
        (lambda run: (run / "metrics.jsonl").write_text('no\n{"step": 1}\n'), "metrics.jsonl, line 1"),
    ],
)
def test_what_is_damaged_is_named_in_one_line(copied, damage, said):
    damage(copied)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        report.write([runs.open_run(copied)])
    assert len(str(caught.value).splitlines()) == 1
    assert not (copied / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused(copied):
    done = metatrain(copied.parent, "report", "run", ".", "--out", "page.html", expect=2)
    assert done.err.startswith("metatrain: . is not a run") and len(done.err.splitlines()) == 1
    assert not (copied.parent / "page.html").exists()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    few = ["outer.steps=2", "evaluation.tasks=2", "evaluation.validation_tasks=2", "evaluation.baselines=false"]
    metatrain(folder, "train", "tiny.yaml", *few, f"tracking.uri=sqlite:///{folder}/mlflow.db")
    return next((folder / "runs").iterdir())


def in_mlflow(run: Path) -> tuple[str, list[str]]:
    """A run's status in MLflow, and the files at the top of what is kept for it."""
    client = MlflowClient(f"sqlite:///{run.parent.parent}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'metatrain'")
    (found,) = client.search_runs([experiment.experiment_id])
    return found.info.status, [file.path for file in client.list_artifacts(found.info.run_id)]


@pytest.mark.slow
def test_a_tracked_run_keeps_its_page_in_mlflow_and_its_status(tracked):
    folder = tracked.parent.parent
    assert "report.html" not in in_mlflow(tracked)[1]
    with runs.lock_run(runs.open_run(tracked)):
        done = metatrain(folder, "report", str(tracked), "--record")
        assert "is being trained" in done.err
        assert (tracked / "report.html").exists()
        assert in_mlflow(tracked) == ("FINISHED", [f for f in in_mlflow(tracked)[1] if f != "report.html"])
    metatrain(folder, "report", str(tracked))
    assert "report.html" not in in_mlflow(tracked)[1]  # only on request
    metatrain(folder, "report", str(tracked), "--record")
    status, files = in_mlflow(tracked)
    assert status == "FINISHED"
    assert "report.html" in files
    config = (tracked / "config.yaml").read_text()
    (tracked / "config.yaml").write_text(config.replace("  steps: 2\n", "  steps: 9\n"))
    metatrain(folder, "report", str(tracked), "--record", "--trust")  # the edit is not ours by its signature
    assert in_mlflow(tracked)[0] == "KILLED"


def test_a_tracking_server_that_is_away_does_not_lose_the_page(copied):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["tracking"]["uri"] = "http://127.0.0.1:9"
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    done = metatrain(copied.parent, "report", "run", "--out", "page.html", "--record", "--trust", expect=2)
    assert done.out.strip() == "page.html"
    assert len(done.err.strip().splitlines()) == 1
    assert "page.html is written" in done.err and "http://127.0.0.1:9" in done.err
    assert "Results" in (copied.parent / "page.html").read_text()
