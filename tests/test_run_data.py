"""A run keeps the classes it was trained on: evaluation says so, also on other data, and a resume refuses a change."""

import json
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from metatrain.cli import app
from tests import drawings, pictures

NAMES = [f"class_{number:02}" for number in range(16)]
SHAPE = {"ways": 2, "shots": 1, "queries": 2}
CONFIG = {
    "tasks": {"name": "image_folder", "root": "data", "size": 12, "train": SHAPE, "test": SHAPE},
    "model": {"name": "mlp"},
    "algorithm": {"name": "protonet"},
    "outer": {"steps": 2, "tasks_per_step": 2},
    "evaluation": {"tasks": 4, "validation_tasks": 2, "baselines": False},
    "tracking": {"uri": None},
}


def ask(*arguments: str, code: int = 0) -> str:
    """Return what a command prints; for a wrong request its message."""
    done = CliRunner().invoke(app, arguments)
    if code:
        assert isinstance(done.exception, ValueError), done.output
        return str(done.exception)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, and a run trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    pictures.write(folder / "data", pictures.class_files(NAMES))
    (folder / "config.yaml").write_text(yaml.dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("METATRAIN_CACHE", str(folder / "cache"))
        assert "0 of 4 test classes were trained on" in ask("train", "config.yaml")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of both, and the current folder."""
    folder = shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("cache"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("METATRAIN_CACHE", str(trained / "cache"))
    path = next((folder / "runs").iterdir())
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["tasks"]["root"] = str(folder / "data")
    (path / "config.yaml").write_text(yaml.dump(config))
    return str(path)


def grow(names: Sequence[str], first: int = 40) -> None:
    pictures.write(Path("data"), pictures.class_files(list(names), first))


def numbers_of(run: str, *overrides: str) -> tuple[int | None, int | None, str]:
    """Return the numbers of test classes and of those trained on, and what is printed."""
    output = ask("evaluate", run, *overrides, "--json")
    plain = json.loads(next(line for line in output.splitlines() if line.startswith("{")))["test"]
    return plain["test_classes"], plain["test_classes_trained_on"], output


def test_the_record_holds_the_classes_and_their_contents(run: str) -> None:
    plain = json.loads((Path(run) / "data.json").read_text())
    assert sorted(chain.from_iterable(plain["splits"].values())) == NAMES
    assert plain["counts"] == {"train": 10, "validation": 2, "test": 4}
    assert plain["examples"] == 16 * pictures.COPIES
    assert len(set(plain["contents"].values())) == 16


def test_a_folder_that_grew_is_tested_on_the_runs_own_classes(run: str) -> None:
    grow(["new_a", "new_b"])
    classes, trained_on, output = numbers_of(run)
    assert (classes, trained_on) == (4, 0)
    assert "0 of 4 test classes were trained on" in output
    assert "left out: 2 classes in no split: new_a, new_b" in output


def test_data_that_have_moved_are_the_same(run: str) -> None:
    Path("data").rename("moved")
    assert numbers_of(run, "tasks.root=moved")[:2] == (4, 0)
    output = ask("train", "--resume", run, "tasks.root=moved")
    assert "0 of 4 test classes were trained on" in output


def test_a_resume_refuses_classes_added_removed_or_changed(run: str) -> None:
    grow(["new"])
    assert "(1 class added: new (" in (message := ask("train", "--resume", run, code=2))
    assert message.endswith("): restore them, or start a new run")
    shutil.rmtree("data/new")
    pictures.write(Path("data"), {"class_03/0.png": pictures.encoded(pictures.pixels(30, 3))})
    assert "(1 class with other images: class_03)" in ask("train", "--resume", run, code=2)
    shutil.rmtree("data/class_03")
    assert "1 class removed: class_03 (train)" in ask("train", "--resume", run, code=2)


def test_another_choice_of_classes_says_which_were_trained_on(run: str) -> None:
    assert numbers_of(run, "tasks.splits={test: [class_00, class_01, class_02, class_03]}")[1] > 0
    output = numbers_of(run, "tasks.splits=test")[2]
    assert "WARNING: 10 of 16 test classes were trained on: " in output
    assert numbers_of(run, "tasks.splits=auto")[:2] == (4, 0)


def test_an_undivided_folder_of_other_classes_is_tested_whole(run: str) -> None:
    names = [f"kind_{number}" for number in range(8)]
    pictures.write(Path("other"), pictures.class_files(names, 20))
    assert numbers_of(run, "tasks.root=other")[:2] == (8, 0)
    shutil.move("other/kind_0", "other/class_00")
    classes, trained_on, output = numbers_of(run, "tasks.root=other")
    assert (classes, trained_on) == (8, 1)
    assert "WARNING: 1 of 8 test classes have the names of classes trained on, with other images: class_00" in output
    output = numbers_of(run, "tasks.root=other", "tasks.splits=auto")[2]
    assert "more classes of these tasks are for training and validation" in output


def test_another_source_starts_from_its_own_settings(run: str, tmp_path: Path) -> None:
    drawings.write_folders(tmp_path / "omniglot")
    output = numbers_of(run, "tasks.name=omniglot", f"tasks.root={tmp_path / 'omniglot'}")[2]
    assert "images of omniglot [1, 28, 28] are brought to those trained on, [3, 12, 12]" in output
    root = pictures.write(tmp_path / "mini", pictures.split_files())
    message = ask("evaluate", run, "tasks.size=20", code=2)
    assert message.endswith(
        "their examples are of (3, 20, 20), and the run was trained on (3, 12, 12): set tasks.size=12"
    )
    assert numbers_of(run, "tasks.name=mini_imagenet", f"tasks.root={root}", "tasks.size=12")[0] == 4


def test_a_run_without_a_record_goes_on_and_says_so_once(run: str) -> None:
    (Path(run) / "data.json").unlink()
    classes, trained_on, output = numbers_of(run)
    assert (classes, trained_on) == (3, None)
    assert "3 test classes; whether they were trained on is unknown: the run keeps no record of its classes" in output
    output = ask("train", "--resume", run)
    assert output.count("kept no record of its data: whether they have changed is unknown") == 1


def test_a_record_of_another_kind_is_refused_in_a_line(run: str) -> None:
    path = Path(run) / "data.json"
    plain = json.loads(path.read_text())
    for damaged in ("[", "[]", json.dumps({**plain, "contents": {}}), json.dumps({**plain, "splits": {"test": 3}})):
        path.write_text(damaged)
        message = ask("evaluate", run, code=2)
        assert "data.json" in message and "\n" not in message and message.endswith(": restore that file, or remove it")


def test_nothing_is_trained_on_test_classes_alone(run: str) -> None:
    message = ask("train", "config.yaml", "tasks.splits=test", code=2)
    assert message.startswith("tasks: no classes are left for training (0 train, 0 validation, 16 test): set")


def test_splits_that_an_evaluation_does_not_read_do_not_bound_it(run: str) -> None:
    """There are four test classes and two for validation; one for training has a single picture."""
    for picture in sorted(Path("data/class_03").iterdir())[1:]:
        picture.unlink()
    classes, trained_on, output = numbers_of(run, "tasks.test.ways=4")
    assert (classes, trained_on) == (4, 0)
    assert "other images" not in output and "left out" not in output
    assert "5-way needs 5 classes; 'test'" in ask("evaluate", run, "tasks.test.ways=5", code=2)


def test_test_classes_that_have_changed_or_are_gone_are_named(run: str) -> None:
    name = json.loads((Path(run) / "data.json").read_text())["splits"]["test"][0]
    pictures.write(Path("data"), {f"{name}/0.png": pictures.encoded(pictures.pixels(30, 3))})
    assert f"1 test class has other images than when the run began: {name}" in ask("evaluate", run)
    shutil.rmtree(f"data/{name}")
    message = ask("evaluate", run, code=2)
    assert message.endswith("has no examples: restore them, or set tasks.splits to classes that are there, or to auto")
    assert "test classes were trained on" in ask("evaluate", run, "tasks.splits=auto")
