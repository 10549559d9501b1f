"""Tell a user's own images apart: `metatrain predict`, `adapt_folder` and `predict_folder`."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metatrain
from metatrain.algorithms import MAML, ProtoNet
from metatrain.cli.prediction import predict_command
from metatrain.inference import Learner
from metatrain.models import MLP, Conv4, build_model
from tasks.sources.image_folder import ImageFolder
from tasks.sources.mini_imagenet import MiniImageNet
from tasks.sources.omniglot import Omniglot
from tasks.sources.sinusoid import Sinusoid
from tasks.sources.strokes import Strokes
from tasks.types import TaskSpec
from tests import pictures
from tests.configurations import tiny
from tests.test_inference import SHORT, train

CLASSES = ["ka", "sa", "ta", "na"]


def drawing(number: int, copy: int, side: int = 28) -> np.ndarray:
    """Dark ink on light paper: a bar in a place of its class's own, moved a little from copy to copy."""
    paper = np.full((side, side), 255, dtype=np.uint8)
    paper[(3 + 6 * number) * side // 28 : (6 + 6 * number) * side // 28, (2 + copy) * side // 28 : 24 * side // 28] = 0
    return paper


def write(root: Path, names: list[str], copies: range) -> Path:
    for number, name in enumerate(names):
        for copy in copies:
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawing(number, copy)).save(root / name / f"{copy}.png")
    return root


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = f"runs.root={tmp_path_factory.mktemp('runs')}"
    return str(train(tiny(root, "algorithm={name: protonet}", *SHORT)))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Four classes, where the run learned from tasks of three."""
    return write(tmp_path / "support", CLASSES, range(2)), write(tmp_path / "query", CLASSES, range(2, 4))


def predict(run_dir, folders, table=None, out=None, normalization=None, as_json=False) -> None:
    predict_command(run_dir, str(folders[0]), str(folders[1]), table, out, normalization, as_json, trust=False)


def test_the_command_prints_writes_and_draws_what_it_takes_each_image_for(run_dir, folders, tmp_path, capsys):
    (folders[1] / "notes.txt").write_text("not an image")
    table, picture = tmp_path / "found.csv", tmp_path / "found.png"
    predict(run_dir, folders, table, picture, as_json=True)
    out, err = capsys.readouterr()
    *lines, summary, last = out.splitlines()
    assert lines[0].split() == ["file", "class", "probability", "folder"]
    assert [line.split()[:2] for line in lines[1:]] == [
        [f"{name}/{copy}.png", name] for name in sorted(CLASSES) for copy in (2, 3)
    ]
    assert summary == "8 images, 4 classes from 8 images (inductive): 8 of 8 right (100.0 %)"
    assert err == "--query: left out 1 file that are no images (notes.txt)\n"
    found = json.loads(last)
    assert found["classes"] == dict.fromkeys(sorted(CLASSES), 2)
    assert (found["normalization"], found["accuracy"]) == ("inductive", 1.0)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    for row, one in zip(rows, found["predictions"], strict=True):
        assert (row["file"], row["class"], row["folder"]) == (one["file"], one["label"], one["truth"])
        assert float(row["probability"]) == one["probability"] == max(one["probabilities"].values())
        assert [float(row[f"p({name})"]) for name in sorted(CLASSES)] == list(one["probabilities"].values())
        assert sum(one["probabilities"].values()) == pytest.approx(1)
    with Image.open(picture) as drawn:
        assert drawn.width > 1000


def test_images_without_labels_in_a_flat_folder_or_a_zip(run_dir, folders, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(4):
        Image.fromarray(drawing(number, 3, 56)).convert("RGB").save(flat / f"{number}.jpg")
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        for file in flat.iterdir():
            archive.write(file, file.name)
    learner = metatrain.load(run_dir).adapt_folder(folders[0])
    assert learner.labels == sorted(CLASSES)
    found = learner.predict_folder(flat)
    assert [(one.file, one.label, one.truth) for one in found] == [
        (f"{number}.jpg", CLASSES[number], None) for number in range(4)
    ]
    assert learner.predict_folder(tmp_path / "flat.zip") == found
    predict(run_dir, (folders[0], flat), out=tmp_path / "flat.png")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "class", "probability"]
    assert lines[-1] == "4 images, 4 classes from 8 images (inductive)"


def test_queries_that_are_wrong_strange_or_known_already_are_told(run_dir, folders, tmp_path, capsys):
    write(folders[1], ["sa"], range(4, 5))  # ka's drawing, in sa's folder
    write(folders[1], ["unknown"], range(5, 6))
    Image.fromarray(drawing(0, 0)).save(folders[1] / "ka" / "seen.png")
    predict(run_dir, folders, out=tmp_path / "found.png")
    out, err = capsys.readouterr()
    assert "sa/4.png       ka" in out
    assert "sa (wrong)" in out
    assert out.splitlines()[-1].endswith(": 9 of 10 right (90.0 %)")
    assert err == "1 image of --query are in --support too, so that they are no test of the learner\n"


def test_a_transductive_prediction_is_asked_for_and_warned_about(run_dir, folders, capsys):
    predict(run_dir, folders, normalization="transductive")
    assert "(transductive)" in capsys.readouterr().out
    (few,) = [folders[1] / "ka"]
    with pytest.warns(UserWarning, match="2 of at least 4 queries"):
        predict(run_dir, (folders[0], few), normalization="transductive")


def learner_of(source, shape: tuple[int, ...]) -> Learner:
    spec = TaskSpec("classification", 5, shape, ())
    model = build_model(Conv4(width=4, depth=2), spec, seed=0).with_normalization("inductive")
    return Learner(ProtoNet(), model, ProtoNet().init(model, spec, 0), source)


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        (ImageFolder(size=12), (3, 12, 12)),
        (ImageFolder(size=16, channels="grey", mean=(0.4,), std=(0.2,)), (1, 16, 16)),
        (MiniImageNet(size=12, mean=(0.2, 0.3, 0.4)), (3, 12, 12)),
        (Omniglot(), (1, 28, 28)),
        (Strokes(), (1, 28, 28)),
    ],
)
def test_files_get_the_preprocessing_of_the_run(source, shape, tmp_path):
    """The same numbers as when the images are decoded as for a store, and normalised as in training."""
    photos = pictures.write(tmp_path / "photos", pictures.class_files(["a", "b", "c"]))
    if isinstance(source, (Omniglot, Strokes)):
        for file in photos.glob("*/*.png"):
            Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    learner = learner_of(source, shape)
    files = sorted(photos.glob("*/*.png"))
    x = torch.stack([torch.tensor(source.decode(file.read_bytes())) for file in files]).float() / 255
    assert tuple(x.shape[1:]) == shape
    expected = learner.adapt((x, [file.parent.name for file in files])).probabilities(x)
    found = learner.adapt_folder(photos).predict_folder(photos)
    assert [one.file for one in found] == [str(file.relative_to(photos)) for file in files]
    rows = torch.tensor([list(one.probabilities.values()) for one in found])
    assert torch.allclose(rows, expected, atol=1e-6)


def test_a_drawing_is_decoded_as_omniglots_are():
    content = io.BytesIO()
    Image.fromarray(drawing(1, 2, 105) > 0).save(content, format="PNG")
    with Image.open(content) as image:
        grey = Image.fromarray(255 - np.asarray(image.convert("L")))
    expected = np.asarray(grey.resize((28, 28), Image.Resampling.LANCZOS))[None]
    for source in (Omniglot(), Strokes()):
        assert np.array_equal(source.decode(content.getvalue()), expected)
    assert expected.max() == 255


def test_drawings_that_are_light_on_dark_are_told(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(255 - drawing(ord(name) - 97, 0)).save(tmp_path / name / "0.png")
    with pytest.warns(UserWarning, match="of the support images is ink.*invert images that are light on dark"):
        learner_of(Strokes(), (1, 28, 28)).adapt_folder(tmp_path)


def spoil(root: Path) -> None:
    (root / "ka" / "0.png").write_bytes(b"no image")
    (root / "sa" / "1.png").write_bytes((root / "sa" / "0.png").read_bytes()[:50])


def flatten(root: Path) -> None:
    for number, file in enumerate(sorted(root.glob("*/*.png"))):
        file.rename(root / f"{number}.png")


def clear(root: Path) -> None:
    for file in root.glob("*/*.png"):
        file.unlink()


NO_CLASSES = r"in one folder, and labels are folders: use a folder that holds a folder of images for each class$"
MISTAKES = [
    (spoil, True, r": 2 files do not decode as an image: ka/0.png \(unknown format\), sa/1.png \(.*\): replace them"),
    (clear, True, r": holds no images \(.png, .*\): use a folder with images$"),
    (lambda root: root.rename(f"{root} gone"), True, r": there is no such folder or zip: use the path of one"),
    (flatten, False, r": 8 images " + NO_CLASSES),
    (
        lambda root: [(root / name).rename(root.parent / name) for name in CLASSES[1:]],
        False,
        r": 2 images " + NO_CLASSES,
    ),
    (
        lambda root: (root / "ka" / "0.png").rename(root / "0.png"),
        False,
        r": 1 image in no class's folder \(0.png\): mo",
    ),
]


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [(which, change, message) for change, also_query, message in MISTAKES for which in range(1 + also_query)],
)
def test_folders_with_one_mistake_are_told_in_one_line(run_dir, folders, which, change, message, capsys):
    write(folders[1], CLASSES, range(2))
    change(folders[which])
    with pytest.raises(ValueError, match=("support", "query")[which] + message) as told:
        predict(run_dir, folders)
    assert "\n" not in str(told.value)
    assert capsys.readouterr().out == ""


def test_runs_without_images_and_files_that_cannot_be_written_are_refused(run_dir, folders, tmp_path):
    regressor = build_model(MLP(), TaskSpec("regression", None, (1,), (1,)), 0)
    learner = Learner(MAML(), regressor, regressor.initial(), Sinusoid())
    with pytest.raises(ValueError, match=r"tasks of this run \(Sinusoid\) are not read from image files: use adapt"):
        learner.adapt_folder(folders[0])
    with pytest.raises(ValueError, match="a NoneType is no path: use that of a folder"):
        learner_of(Strokes(), (1, 28, 28)).adapt_folder(None)
    for table, out, message in (
        (tmp_path / "x.txt", None, "--csv: .* ends in .csv"),
        (None, tmp_path / "x.jpg", "--out: .* ends in .png"),
        (tmp_path / "nowhere" / "x.csv", None, "--csv: there is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(run_dir, folders, table, out)
    with pytest.raises(ValueError, match="normalization: no 'none': choose"):
        predict(run_dir, folders, normalization="none")
