"""Use a meta-trained learner as a scikit-learn classifier: `fit` adapts it to labelled rows, `predict` asks it.

The one module that imports scikit-learn.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from metatrain.validation import require

MOST_ROWS = 10_000
"""Rows of a support set: attention between rows takes time that grows with their square."""


class RowClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify rows of numbers by a meta-trained learner, as returned by `metatrain.load(run).estimator()`.

    No weight is changed in `fit`: the learner reads the rows. Columns may be in any order and scale; nan is a missing
    value where the run was trained with such. Limits: the features and classes that the run was trained for, and
    `MOST_ROWS` rows. Categories and text have to be numbers, as for most of scikit-learn's classifiers.
    """

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def fit(self, X: ArrayLike, y: ArrayLike) -> "RowClassifier":
        """Adapt to rows X [n, features] and their classes y [n]. ValueError: more than the limits."""
        rows, labels = validate_data(self, X, y, dtype=np.float64, ensure_all_finite=self._finite())
        check_classification_targets(labels)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        spec = self.learner.model.spec
        features, classes = rows.shape[1], len(self.classes_)
        limit = f"and this learner reads at most {spec.x[0]}"
        select = "select some, with sklearn.feature_selection or a PCA"
        require(features <= spec.x[0], f"X: {features} features, {limit}: {select}")
        require(classes <= spec.ways, f"y: {classes} classes, and this learner tells at most {spec.ways} apart")
        require(len(rows) <= MOST_ROWS, f"X: {len(rows)} rows, and at most {MOST_ROWS} are read: draw some of them")
        self.mean_, self.std_ = _mean_and_std(rows)
        self.adapted_ = self.learner.adapt((self._standardised(rows), numbers)) if classes > 1 else None
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class [n, classes], in the order of `classes_`."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite=self._finite())
        if self.adapted_ is None:  # a single class was seen
            return np.ones((len(rows), 1))
        found = self.adapted_.probabilities(self._standardised(rows)).double().numpy()
        found = found[:, np.argsort(self.adapted_.labels)]
        return found / found.sum(1, keepdims=True)  # type: ignore[no-any-return]

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class of each row [n]."""
        probabilities = self.predict_proba(X)
        predicted: NDArray[Any] = self.classes_[probabilities.argmax(1)]
        return predicted

    def _standardised(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return rows in units of the training rows, in double precision: the learner computes in single."""
        found: NDArray[np.float64] = (rows - self.mean_) / self.std_
        return found

    def _finite(self) -> bool | str:
        return "allow-nan" if self.learner.model.spec.missing else True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.learner.model.spec.missing
        return tags


def _mean_and_std(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of the known values of each column; 0 and 1 where there are none to tell."""
    known = ~np.isnan(rows)
    count = known.sum(0).clip(1)
    mean = np.where(known, rows, 0.0).sum(0) / count
    std = np.sqrt(np.square(np.where(known, rows - mean, 0.0)).sum(0) / count)
    return mean, np.where(std > 0, std, 1.0)
