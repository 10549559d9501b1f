"""Compare a run that learns tables in context with scikit-learn's classifiers, on scikit-learn's own tables.

    python -m benchmarks tables RUN [--splits 20] [--rows 50]

The run was trained on drawn tables alone. In each seeded split all classifiers get the same training rows, stratified
by class, and are scored on all others. Of tables with more features than the run reads, all classifiers get those of
the greatest variance among the training rows.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import metatrain
from benchmarks import results
from benchmarks.found import format_mean
from metatrain.evaluation.paired import Difference, paired_differences

Array = NDArray[Any]

TABLES: dict[str, Callable[..., Any]] = {
    "iris": load_iris,
    "wine": load_wine,
    "breast_cancer": load_breast_cancer,
    "digits": load_digits,
}
OTHERS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "k nearest neighbours": lambda: make_pipeline(StandardScaler(), KNeighborsClassifier()),
    "random forest": lambda: RandomForestClassifier(random_state=0),
    "histogram boosting": lambda: HistGradientBoostingClassifier(random_state=0),
}
OURS = "in context"


class Scores(NamedTuple):
    """One classifier on one split."""

    auc: float
    loss: float
    seconds: float


def main(argv: list[str]) -> None:
    """Score all classifiers on all splits, and write the part "tables"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tables", description=__doc__)
    parser.add_argument("run", help="folder of a run on tables")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--rows", type=int, default=50, help="training rows of a split")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    learner = metatrain.load(options.run)
    classifiers = {OURS: learner.estimator, **OTHERS}
    found = {table: score_table(table, classifiers, learner.model.spec.x[0], options) for table in TABLES}
    rows = [row for table, scores in found.items() for row in rows_of(table, list(classifiers), scores)]
    rows += rows_of("mean of all", list(classifiers), np.mean(list(found.values()), axis=0))
    columns = [
        "table",
        "classifier",
        "ROC AUC",
        "ours less it (interval)",
        "log-loss",
        "ours less it (interval)",
        "seconds",
    ]
    title = f"Tables: {options.rows} training rows, {options.splits} splits"
    results.write("tables", title, columns, rows, _notes(options, learner.model.spec.x[0]), {})


def score_table(
    table: str, classifiers: dict[str, Callable[[], Any]], most: int, options: argparse.Namespace
) -> NDArray[np.float64]:
    """Return ROC AUC, log-loss and seconds of each classifier on each split [splits, classifiers, 3]."""
    x, y = TABLES[table](return_X_y=True)
    splits = StratifiedShuffleSplit(options.splits, train_size=options.rows, random_state=0)
    found = []
    for shown, asked in splits.split(x, y):
        kept = np.sort(np.argsort(-x[shown].var(0), kind="stable")[:most])
        found.append([score(make(), x[:, kept], y, shown, asked) for make in classifiers.values()])
        print(f"{table:14} {len(found):3} of {options.splits}", flush=True)
    return np.array(found)


def score(classifier: Any, x: Array, y: Array, shown: Array, asked: Array) -> Scores:
    """Fit on the rows `shown` and score the rows `asked`; of several classes the AUC is one against rest."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few rows some classes have fewer than a classifier would like
        probabilities = classifier.fit(x[shown], y[shown]).predict_proba(x[asked])
    seconds = time.perf_counter() - began
    binary = probabilities.shape[1] == 2
    auc = roc_auc_score(y[asked], probabilities[:, 1] if binary else probabilities, multi_class="ovr")
    return Scores(float(auc), float(log_loss(y[asked], probabilities)), seconds)


def rows_of(table: str, names: list[str], scores: NDArray[np.float64]) -> list[list[Any]]:
    """Return a row for each classifier: its means over splits, and what ours has more, paired by split."""
    pairs = [(0, other) for other in range(1, len(names))]
    auc, loss = (paired_differences(scores[..., kind], pairs) for kind in (0, 1))
    rows = []
    for at, name in enumerate(names):
        differences = ["", ""] if at == 0 else [_format(auc[at - 1]), _format(loss[at - 1])]
        seconds = round(float(np.median(scores[:, at, 2])), 3)
        means = [format_mean(scores[:, at, kind]) for kind in (0, 1)]
        rows.append([table, name, means[0], differences[0], means[1], differences[1], seconds])
    return rows


def _format(one: Difference) -> str:
    return f"{one.value:+.4f} ({one.ci95:.4f})"


def _notes(options: argparse.Namespace, most: int) -> list[str]:
    return [
        f"Of more than {most} features, all get the {most} of the greatest variance among the training rows.",
        "Mean over splits (half its 95 % interval, Student's t); differences are paired by split. Splits of one table "
        "share rows: their intervals are about other splits of these tables, not about other tables.",
        f"Run: {options.run}, trained on drawn tables alone. Seconds: median, fit and predict, one thread for ours.",
    ]
