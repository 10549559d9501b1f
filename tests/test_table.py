"""`tasks.name=table`: rows of real tables as tasks, by address, and what a file may hold."""

import re

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from sklearn.datasets import load_iris
from torch.utils._pytree import tree_leaves

from metatrain.yaml_config import apply_overrides
from tasks.sources.table import DATASETS, Table
from tasks.types import EpisodeShape
from tests.command_line import last_json
from tests.command_line import metatrain as command
from tests.configurations import TINY, method

SHAPE = EpisodeShape(None, 12, 7)
IRIS = Table("iris")


@given(indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=4), features=st.sampled_from([None, 2, 9]))
def test_a_task_is_the_same_whatever_is_asked_with_it(indices, features):
    drawn = Table("iris", features=features).distribution("test", SHAPE, 3)
    together = drawn.episodes(indices)
    assert together.query.x.shape == (len(indices), 7, features or 4)
    for row, index in enumerate(indices):
        for one, all_ in zip(tree_leaves(drawn.episodes([index])), tree_leaves(together), strict=True):
            assert torch.equal(one[0].nan_to_num(9e9), all_[row].nan_to_num(9e9))


@given(index=st.integers(0, 2**40))
def test_rows_are_those_of_the_table_none_twice_and_every_class_is_shown(index):
    one = IRIS.distribution("train", SHAPE, 0).episodes([index])
    x, y = load_iris(return_X_y=True)
    known = {(*map(float, row), int(label)) for row, label in zip(x.astype(np.float32), y, strict=True)}
    found = [(*row, label) for part in one for row, label in zip(part.x[0].tolist(), part.y[0].tolist(), strict=True)]
    assert set(found) <= known and set(one.support.y[0].tolist()) == {0, 1, 2}
    more = IRIS.distribution("train", EpisodeShape(None, 12, 50), 0).episodes([index])
    assert torch.equal(more.support.x, one.support.x) and torch.equal(more.query.x[:, :7], one.query.x)


def test_scikit_learn_s_tables_are_there():
    sizes = {name: (len(Table(name).rows().y), *Table(name).rows().x.shape[1:]) for name in DATASETS}
    assert sizes == {"iris": (150, 4), "wine": (178, 13), "breast_cancer": (569, 30), "digits": (1797, 64)}
    assert IRIS.distribution("test", SHAPE, 0).class_names(0) == ["setosa", "versicolor", "virginica"]


def test_more_features_than_asked_are_drawn_anew_for_every_task_and_fewer_are_padded():
    tasks = Table("digits", features=20).distribution("test", SHAPE, 0).episodes(range(30))
    assert tasks.support.x.shape[2] == 20 and not bool(tasks.support.x.isnan().any())
    wide = Table("iris", features=6).distribution("test", SHAPE, 0)
    assert wide.spec.missing and not IRIS.distribution("test", SHAPE, 0).spec.missing
    assert wide.episodes([0]).support.x.isnan().any((0, 1)).tolist() == [False] * 4 + [True] * 2


COLUMNS = {
    "size": [1.5, None, 3.0, 4.0],
    "colour": ["red", "blue", None, "red"],
    "round": [True, False, True, None],
    "count": [1, 2, 3, 4],
    "kind": ["a", "b", "a", "b"],
}
NUMBERS = [[1.5, 1, 1, 1], [np.nan, 0, 0, 2], [3, np.nan, 1, 3], [4, 1, np.nan, 4]]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_files_of_numbers_text_truth_values_and_empty_cells_are_read(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.table(COLUMNS), path)
    else:
        lines = zip(
            *([name, *("" if v is None else str(v) for v in values)] for name, values in COLUMNS.items()), strict=True
        )
        path.write_text("\n".join(",".join(line) for line in lines) + "\n")
    rows = Table(root=str(path), target="kind").rows()
    assert rows.classes == ["a", "b"] and rows.y.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(rows.x, np.array(NUMBERS))
    assert Table(root=str(path), target="kind").distribution("test", EpisodeShape(None, 2, 1), 0).spec.missing


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dataset": "iris", "root": "x.csv"}, "dataset: iris, and root is set to a file too: remove one of them"),
        ({"dataset": "irises"}, "dataset: no table is called 'irises': set one of iris, wine"),
        ({"dataset": "iris", "target": "y"}, "target: that of iris is known: remove it"),
        ({"root": "x.csv"}, "target: missing: set it to the name of the column of classes"),
        ({"dataset": "iris", "features": 0}, "features: 0 leaves nothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Table(**settings)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read (No such file or directory): set a CSV or Parquet file"),
        ("a,kind\n1\n", "is no table"),
        ("a,b\n1,2\n", "target: t.csv has no column 'kind': set one of a"),
        ("a,a,kind\n1,2,x\n3,4,y\n", "root: t.csv has two columns called 'a': rename one"),
        ("a,kind\n1,x\n2,x\n", "target: all rows of t.csv are of one class"),
        ("kind\nx\ny\n", "root: t.csv has no column beside 'kind'"),
        (
            "a,kind\n2020-01-01,x\n2020-01-02,y\n",
            "root: the column 'a' is of type date32[day]: make it numbers or text",
        ),
        ("a,kind\n1,1\n2,\n", "target: 1 rows of t.csv have no class: remove them"),
    ],
)
def test_files_that_cannot_be_are_refused(tmp_path, text, says):
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(says)):
        Table(root=str(path), target="kind").rows()


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (EpisodeShape(3, 12, 7), "tasks.test.ways: tasks have all classes of the table"),
        (EpisodeShape(None, 2, 7), "tasks.test.shots: 2 rows cannot show 3 classes: raise it"),
        (EpisodeShape(None, 100, 51), "tasks.test.queries: 151 rows a task of 150"),
    ],
)
def test_shapes_that_cannot_be_are_refused(shape, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        IRIS.distribution("test", shape, 0)


def test_a_run_on_drawn_tables_is_tested_on_a_real_one(tmp_path):
    sized = (*method("in_context_table"), "outer.steps=2", "evaluation.baselines=false")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, sized)))
    run = last_json(command(tmp_path, "train", "t.yaml", "--json"))["run_dir"]
    real = ("tasks.name=table", "tasks.dataset=iris", "tasks.features=4")
    sizes = ("tasks.test.ways=null", "tasks.test.shots=20", "tasks.test.queries=30")
    found = last_json(command(tmp_path, "evaluate", run, *real, *sizes, "--json"))
    assert 0 <= found["test"]["accuracy"] <= 1 and found["test"]["tasks"] == 8
    done = command(tmp_path, "evaluate", run, *real[:2], "tasks.features=9", *sizes, expect=2)
    assert len(done.err.strip().splitlines()) == 1 and "Traceback" not in done.err


def test_a_table_has_to_be_named():
    with pytest.raises(
        ValueError, match=r"dataset: missing: set one of iris, wine, breast_cancer, digits, or set root"
    ):
        Table().rows()
