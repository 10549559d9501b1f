"""Feature vectors as tasks: what files are read, how classes are divided, and that runs on them are runs."""

import json
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, parquet

from metatrain.yaml_config import apply_overrides
from tasks.sources.class_splits import SplitLists
from tasks.sources.feature_files import Names, read_vectors
from tasks.sources.features import Features
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests.command_line import last_json
from tests.command_line import metatrain as command
from tests.configurations import TINY

ROWS, SIZE, CLASSES = 6, 4, 12
SHAPE = EpisodeShape(2, 1, 2)
LABELS = [f"c{number % CLASSES:02}" for number in range(ROWS * CLASSES)]
"""Rows are not in order of class."""
SPLIT_OF = {f"c{number:02}": ("train", "val", "Test")[number % 3] for number in range(CLASSES)}


def vectors() -> np.ndarray:
    """Values that tell their row and column."""
    return (10 * np.arange(ROWS * CLASSES)[:, None] + np.arange(SIZE)).astype(np.float32)


def columns(**more: object) -> dict[str, object]:
    return {"class": LABELS, **{f"f{number}": vectors()[:, number] for number in range(SIZE)}, **more}


def write_parquet(path: Path, **more: object) -> Path:
    parquet.write_table(pa.table(columns(**more)), path)
    return path


def write_lists(path: Path, **more: object) -> Path:
    parquet.write_table(
        pa.table({"class": LABELS, "embedding": list(vectors()), "number": range(len(LABELS)), **more}), path
    )
    return path


def write_csv(path: Path, **more: object) -> Path:
    csv.write_csv(pa.table(columns(**more)), path)
    return path


def write_npz(path: Path, **more: object) -> Path:
    np.savez(path, x=vectors(), **{"class": np.array(LABELS)}, **more)
    return path


WRITERS = {"wide.parquet": write_parquet, "lists.parquet": write_lists, "table.csv": write_csv, "arrays.npz": write_npz}


@pytest.fixture(params=WRITERS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return WRITERS[request.param](tmp_path / request.param)


def fails(message: str, root: Path | None, **settings: object) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Features(None if root is None else str(root), **settings).classes()
    assert "\n" not in str(error.value)


def test_every_kind_of_file_gives_the_same_classes(file):
    found = Features(str(file)).classes()
    assert found.names == tuple(sorted(set(LABELS))) and found.x.dtype == np.float32
    for number, name in enumerate(found.names):
        rows = found.x[found.bounds[number] : found.bounds[number + 1]]
        assert np.array_equal(rows, vectors()[[label == name for label in LABELS]])
    everyone = [one for split in SPLITS for one in found.splits[split]]
    assert sorted(everyone) == list(range(CLASSES)) and all(len(found.splits[split]) >= 2 for split in SPLITS)
    assert Features(str(file)).classes() is found, "kept for as long as the file does not change"


def test_a_task_is_its_index_and_its_rows_are_of_its_classes(file):
    source = Features(str(file))
    tasks = source.distribution("train", SHAPE, 0)
    indices = [3, 0, 2**40, 3]
    together = tasks.episodes(indices)
    again = pickle.loads(pickle.dumps(tasks)).episodes(indices)
    for part, copy in zip(together, again, strict=True):
        assert torch.equal(part.x, copy.x) and torch.equal(part.x[0], part.x[3])
    assert len(pickle.dumps(tasks)) < 2000, "the vectors stay behind"
    for j, index in enumerate(indices):
        names = tasks.class_names(index)
        for part in together:
            owners = [LABELS[int(row) // 10] for row in part.x[j, :, 0]]
            assert owners == [names[label] for label in part.y[j]]
        assert set(together.support.x[j, :, 0].tolist()).isdisjoint(together.query.x[j, :, 0].tolist())
    assert tasks.spec.x == (SIZE,) and tasks.spec.ways == 2


def test_a_column_of_splits_is_followed(tmp_path):
    split = [SPLIT_OF[label] for label in LABELS]
    source = Features(str(write_parquet(tmp_path / "a.parquet", part=split)), split="part")
    data = source.data()
    assert {split: list(data.classes[split]) for split in SPLITS} == {
        name: sorted(one for one, of in SPLIT_OF.items() if of == spelled)
        for name, spelled in zip(SPLITS, ("train", "val", "Test"), strict=True)
    }
    assert data.examples == len(LABELS) and len(data.contents) == CLASSES
    listed = source.with_splits({"test": ["c01"], "train": ["c00", "c02"], "validation": ["c03"]}).data().classes
    assert listed["test"] == ["c01"] and listed["train"] == ["c00", "c02"]
    split[0] = "val"
    fails(
        "'c00' is in the splits 'validation' and 'train': leave it in one",
        write_parquet(tmp_path / "b.parquet", part=split),
        split="part",
    )
    split[0] = "later"
    fails(
        "later in the column 'part' is no split: write train",
        write_parquet(tmp_path / "c.parquet", part=split),
        split="part",
    )


def test_classes_of_a_group_share_a_split(tmp_path):
    group = [f"g{int(label[1:]) // 2}" for label in LABELS]
    source = Features(str(write_parquet(tmp_path / "a.parquet", group=group)), group="group")
    of_splits = [[int(name[1:]) // 2 for name in names] for names in source.data().classes.values()]
    assert all(len(set(groups)) >= 2 for groups in of_splits)
    assert all(groups.count(group) == 2 for groups in of_splits for group in groups), "its classes are together"
    group[0] = "other"
    fails("'c00' is in the groups 'other' and 'g0'", write_parquet(tmp_path / "b.parquet", group=group), group="group")
    group[0] = "g0"
    straddling = write_parquet(tmp_path / "c.parquet", group=group, part=[SPLIT_OF[label] for label in LABELS])
    fails("'g0' is in the splits 'train' and 'validation'", straddling, group="group", split="part")


def test_groups_are_not_torn_where_a_split_is_missing(tmp_path):
    group = [f"g{int(label[1:]) // 2}" for label in LABELS]
    part = ["test" if name in ("g0", "g1") else "train" for name in group]
    path = write_parquet(tmp_path / "a.parquet", group=group, part=part)
    fails("the column 'part' has no validation: write it, or leave it out", path, group="group", split="part")
    without_groups = Features(str(path), split="part").data()
    assert without_groups.notes[0].startswith("there is no validation split: 4 of train's 8 classes are taken for it")
    few = write_parquet(tmp_path / "b.parquet", group=[f"g{int(label[1:]) // 4}" for label in LABELS])
    fails("has 3 groups in the column 'group', too few for two in each split: name another column", few, group="group")
    with pytest.raises(ValueError, match=r"splits: shuffle is for folders of images: set tasks\.splits to auto"):
        Features(splits="shuffle")


def test_lists_of_classes_override_the_column_of_splits(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", part=["anything"] * len(LABELS))
    assert Features(str(path), split="part", splits=SplitLists(test=("c01",))).data().classes["test"] == ["c01"]


def test_classes_of_a_csv_are_as_they_stand_there(tmp_path):
    labels = [["01", "1", "NA", "true", "2.5", "null", "ä"][number % 7] for number in range(70)]
    rows = [f"{label},{number},{number / 2}" for number, label in enumerate(labels)]
    (tmp_path / "a.csv").write_text("\n".join(["class,f0,f1", *rows]))
    assert set(Features(str(tmp_path / "a.csv")).classes().names) == set(labels)
    table = pa.table({"class": labels, "f0": range(70), "f1": np.arange(70) / 2})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert (
        Features(str(tmp_path / "a.csv")).data().fingerprint == Features(str(tmp_path / "a.parquet")).data().fingerprint
    )


def test_row_numbers_that_pandas_keeps_are_no_features(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pandas.DataFrame(columns()).sample(frac=1.0, random_state=0).to_parquet(tmp_path / "a.parquet")
    assert Features(str(tmp_path / "a.parquet")).classes().x.shape == (len(LABELS), SIZE)


@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), compressed=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_damaged_npz_is_read_or_refused_in_a_line(tmp_path_factory, place, change, compressed):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=vectors()[:24], **{"class": np.array(LABELS[:24])})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= change
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, about what stands in a damaged header
        try:
            assert len(read_vectors(path, Names("class")).labels) == 24
        except ValueError as error:
            assert str(path.name) in str(error) and "\n" not in str(error)


def test_small_classes_and_other_columns_are_left_out_and_said_so(tmp_path):
    labels = [*LABELS[:-1], "rare"]
    parquet.write_table(
        pa.table(columns(title=[str(n) for n in range(len(labels))]) | {"class": labels}), tmp_path / "a.parquet"
    )
    data = Features(str(tmp_path / "a.parquet"), min_examples=2).data()
    assert data.notes[-2:] == (
        "left out: 1 class of fewer than 2 rows: rare",
        "left out: 1 column without features: title",
    )
    assert "rare" not in data.contents and data.examples == len(labels) - 1
    one = Features(str(write_lists(tmp_path / "b.parquet")), columns=["number"]).classes()
    assert one.x.shape == (len(LABELS), 1)


def test_a_changed_file_is_read_again_and_is_other_data(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    before = Features(str(path)).data().fingerprint
    moved = vectors()
    moved[0] += 1
    np.savez(path, x=moved, more=np.zeros(2), **{"class": np.array(LABELS)})
    assert Features(str(path)).data().fingerprint != before


def test_what_cannot_be_read_is_refused_in_a_line(tmp_path):
    good = write_parquet(tmp_path / "a.parquet")
    fails("root: missing: set tasks.root to a file of feature vectors (.parquet, .csv, .npz)", None)
    fails("x.txt is none of .parquet, .csv, .npz", tmp_path / "x.txt")
    fails("cannot be read (No such file or directory)", tmp_path / "x.npz")
    fails("a.parquet has no 'kind', only class, f0", good, label="kind")
    fails("a.parquet has no 'f9'", good, columns=["f9"])
    fails("'class' of a.parquet is of type string: name columns of numbers", good, columns=["class"])
    for name in ("broken.parquet", "broken.npz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no such thing")
    fails("broken.parquet is no table (", tmp_path / "broken.parquet")
    fails("broken.npz is no .npz of arrays without objects (", tmp_path / "broken.npz")
    np.savez(tmp_path / "objects.npz", x=vectors(), **{"class": np.array([*LABELS[:-1], None], dtype=object)})
    fails("objects.npz is no .npz of arrays without objects (", tmp_path / "objects.npz")
    np.savez(tmp_path / "short.npz", x=vectors(), **{"class": np.array(LABELS[:-1])})
    fails("short.npz has 72 vectors and 71 of 'class'", tmp_path / "short.npz")
    np.savez(tmp_path / "two.npz", x=vectors(), z=vectors(), **{"class": np.array(LABELS)})
    fails("columns: two.npz has vectors in x, z: set tasks.columns to one", tmp_path / "two.npz")
    holes = columns() | {"f1": [None, *vectors()[1:, 1].tolist()]}
    parquet.write_table(pa.table(holes), tmp_path / "holes.parquet")
    fails(
        "holes.parquet has 1 row with a number that is missing or not finite, the first of them row 0: remove it",
        tmp_path / "holes.parquet",
    )
    parquet.write_table(pa.table({"class": LABELS, "e": [[1.0], *[[1.0, 2.0]] * 71]}), tmp_path / "ragged.parquet")
    fails("'e' of ragged.parquet lacks vectors, or has some of other lengths", tmp_path / "ragged.parquet")
    parquet.write_table(pa.table(columns() | {"class": [None, *LABELS[1:]]}), tmp_path / "nameless.parquet")
    fails("nameless.parquet has 1 row without 'class': remove it", tmp_path / "nameless.parquet")
    parquet.write_table(pa.table({"class": LABELS}), tmp_path / "bare.parquet")
    fails("bare.parquet has no column of numbers beside class: add features", tmp_path / "bare.parquet")
    np.savez(tmp_path / "point.npz", x=vectors(), **{"class": np.array("c0")})
    fails("'class' of point.npz has shape (): make it one value a row", tmp_path / "point.npz")
    fails("columns: 'class' of point.npz is no array [n, D] of numbers", tmp_path / "point.npz", columns=["class"])
    for name, shape in (("none", (0, 4)), ("flat", (72, 0))):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros(shape), **{"class": np.array(LABELS)})
        fails(f"{name}.npz has no rows, or rows without a number: add some", tmp_path / f"{name}.npz")
    np.savez(tmp_path / "huge.npz", x=np.full((72, 2), 1e300), **{"class": np.array(LABELS)})
    fails("huge.npz has 72 rows with a number that is missing or not finite", tmp_path / "huge.npz")
    (tmp_path / "latin.csv").write_bytes("größe,class\n1,a\n".encode("latin1"))
    fails("latin.csv is no table (", tmp_path / "latin.csv")
    with pytest.raises(ValueError, match="min_examples: 0 is below 1"):
        Features(min_examples=0)


def test_a_run_on_them_is_a_run(tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, 8)) * 3
    x = centres[[int(label[1:]) for label in LABELS]] + rng.normal(size=(len(LABELS), 8))
    np.savez(tmp_path / "v.npz", x=x, **{"class": np.array(LABELS)})
    overrides = (
        f"tasks={{name: features, root: {tmp_path}/v.npz, train: {{ways: 2, shots: 1, queries: 2}}, "
        "test: {ways: 2, shots: 1, queries: 4}}",
        *("model={name: mlp, width: 8}", "algorithm={name: protonet}", "evaluation.tasks=40"),
    )
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, overrides)))
    found = last_json(command(tmp_path, "train", "f.yaml", "--json"))
    by_name = {one["learner"]: one["accuracy"] for one in found["baselines"]}
    assert by_name["nearest_neighbour"] > 0.9 and "from_scratch" in by_name
    run = tmp_path / found["run_dir"]
    kept = Features(str(tmp_path / "v.npz")).data().classes["test"]
    assert all(json.dumps(name) in (run / "data.json").read_text() for name in kept)
    np.savez(tmp_path / "v.npz", x=x + 1, **{"class": np.array(LABELS)})
    refused = command(tmp_path, "train", "--resume", found["run_dir"], "outer.steps=9", expect=2)
    assert "tasks: the data have changed" in refused.err
    other = np.array([f"other {label}" for label in LABELS])
    np.savez(tmp_path / "w.npz", x=x, **{"class": other})
    beside = ("tasks.test.queries=2", "evaluation.tasks=4", "evaluation.baselines=false", "--json")
    tested = last_json(command(tmp_path, "evaluate", found["run_dir"], f"tasks.root={tmp_path}/w.npz", *beside))
    assert tested["test"]["test_classes"] == CLASSES, "an undivided file is for testing"
    line = Features(str(tmp_path / "v.npz")).prepare(no_progress)
    assert line.startswith("features: 72 vectors of 8 numbers in 12 classes (")
