"""A learner of rows of numbers as a scikit-learn classifier."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

import metatrain
from metatrain.estimator import RowClassifier
from metatrain.yaml_config import apply_overrides
from tests.command_line import last_json
from tests.command_line import metatrain as command
from tests.configurations import TINY, method

WIDE = ("tasks.features=[1, 12]", "tasks.classes=[2, 4]", "tasks.train.shots=12", "algorithm.width=16")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a short run on tables of up to 12 features and 4 classes."""
    folder = tmp_path_factory.mktemp("tables")
    sized = (*method("in_context_table"), *WIDE, "outer.steps=3", "evaluation.baselines=false")
    (folder / "tables.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, sized)))
    return folder / last_json(command(folder, "train", "tables.yaml", "--json"))["run_dir"]


@pytest.fixture(scope="module")
def estimator(run) -> RowClassifier:
    return metatrain.load(run).estimator()


def test_it_is_what_scikit_learn_takes_for_a_classifier(estimator):
    """All checks but those of accuracy, which three steps of training do not reach."""
    barely = dict.fromkeys(("check_classifiers_train", "check_classifiers_classes"), "hardly trained")
    results = check_estimator(estimator, on_fail=None, on_skip=None, expected_failed_checks=barely)
    failed = [one["check_name"] for one in results if one["status"] == "failed"]
    assert failed == [], [one["exception"] for one in results if one["status"] == "failed"]
    assert sum(one["status"] == "passed" for one in results) > 40


def test_it_is_used_as_any_classifier(estimator):
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    assert cross_val_score(estimator, x, names, cv=3).shape == (3,)
    fitted = clone(estimator).fit(x[::3], names[::3])
    probabilities = fitted.predict_proba(x)
    assert fitted.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (fitted.predict(x) == fitted.classes_[probabilities.argmax(1)]).all()
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(x), probabilities)
    assert estimator.get_params() == {"learner": estimator.learner}


def test_batches_of_any_size_and_other_rows_change_no_prediction(estimator):
    x, y = load_iris(return_X_y=True)
    fitted = estimator.fit(x[::5], y[::5])
    one_by_one = np.concatenate([fitted.predict_proba(row[None]) for row in x[:9]])
    np.testing.assert_allclose(one_by_one, fitted.predict_proba(x)[:9], atol=1e-5)


def test_a_shift_far_beyond_single_precision_changes_no_prediction(estimator):
    x, y = load_iris(return_X_y=True)
    before = estimator.fit(x[::2], y[::2]).predict_proba(x)
    np.testing.assert_allclose(estimator.fit(x[::2] + 1e9, y[::2]).predict_proba(x + 1e9), before, atol=1e-4)


def test_probabilities_stand_under_their_own_class(estimator):
    """Which class is first among the rows makes no difference."""
    x, y = load_iris(return_X_y=True)
    order = np.argsort(-y, kind="stable")
    one = estimator.fit(x, y).predict_proba(x[:5])
    learner = estimator.learner.adapt((x[order], y[order]))
    assert learner.labels == [2, 1, 0]
    expected = learner.probabilities(x[:5]).numpy()[:, ::-1]
    np.testing.assert_allclose(estimator.fit(x[order], y[order]).predict_proba(x[:5]), one, atol=0.5)
    np.testing.assert_allclose(estimator.predict_proba(x[:5]), expected, atol=1e-4)


def test_missing_values_and_a_single_class_are_taken(estimator):
    x = np.array([[1.0, np.nan], [2.0, 0.0], [np.nan, 1.0], [4.0, 2.0]])
    fitted = estimator.fit(x, [0, 0, 1, 1])
    assert np.isfinite(fitted.predict_proba(np.full((2, 2), np.nan))).all()
    alone = estimator.fit(x, ["a"] * 4)
    assert alone.predict(x).tolist() == ["a"] * 4 and alone.predict_proba(x).tolist() == [[1.0]] * 4


@pytest.mark.parametrize(
    ("shape", "classes", "says"),
    [
        ((8, 13), 2, "X: 13 features, and this learner reads at most 12: select some, with sklearn.feature_selection"),
        ((10, 2), 5, "y: 5 classes, and this learner tells at most 4 apart"),
        ((10_001, 2), 2, "X: 10001 rows, and at most 10000 are read: draw some of them"),
    ],
)
def test_more_than_the_limits_is_refused_in_a_line(estimator, shape, classes, says):
    x = np.random.default_rng(0).normal(size=shape)
    with pytest.raises(ValueError, match=re.escape(says)):
        estimator.fit(x, np.arange(len(x)) % classes)


def test_what_reads_no_rows_is_no_estimator(tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, ["outer.steps=1"])))
    run = last_json(command(tmp_path, "train", "s.yaml", "--json"))["run_dir"]
    with pytest.raises(ValueError, match=r"estimator: this learner reads examples of shape \(1, 28, 28\), not rows"):
        metatrain.load(tmp_path / run).estimator()
