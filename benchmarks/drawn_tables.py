"""Compare a run that learns tables in context with scikit-learn's classifiers, on tables drawn from its own prior.

    python -m benchmarks drawn_tables RUN [--tables 200] [--rows 50]

Choices of prior and network are made here, and not on real tables, which `python -m benchmarks tables` measures. All
tables of a row have at most so many classes; the test split's tables are none that the run was trained on.
"""

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import metatrain
from benchmarks import results
from benchmarks.tables import OTHERS, OURS, rows_of, score
from metatrain.config.load import load_config
from metatrain.runs.locations import open_run
from tasks.sources.causal_tables import CausalTables
from tasks.types import EpisodeShape

CLASSES = (2, 3, 5, 10)
COMPARED = ("logistic regression", "k nearest neighbours")
ASKED = 60
"""Query rows of a table: of these, those of classes that all rows show are scored."""


def main(argv: list[str]) -> None:
    """Score all classifiers on drawn tables of each number of classes, and write the part "drawn_tables"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks drawn_tables", description=__doc__)
    parser.add_argument("run", help="folder of a run on causal_tables")
    parser.add_argument("--tables", type=int, default=200, help="of each number of classes")
    parser.add_argument("--rows", type=int, default=50, help="training rows of a table")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    learner = metatrain.load(options.run)
    source: Any = load_config(open_run(options.run).config).tasks.source
    classifiers = {OURS: learner.estimator, **{name: OTHERS[name] for name in COMPARED}}
    rows: list[list[Any]] = []
    for classes in CLASSES:
        drawn = replace(source, classes=(classes, classes), fewest=None, missing=0.0, together=1)
        scores = score_tables(drawn, classifiers, options)
        rows += rows_of(f"{classes} classes, {len(scores)} tables", list(classifiers), scores)
    columns = ["tables", "classifier", "ROC AUC", "ours less it (interval)", "log-loss", "ours less it (interval)"]
    title = f"Drawn tables: {options.rows} training rows"
    notes = [f"Mean over tables (half its 95 % interval); differences are paired by table. Run: {options.run}."]
    results.write("drawn_tables", title, [*columns, "seconds"], rows, notes, {})


def score_tables(source: CausalTables, classifiers: dict[str, Any], options: argparse.Namespace) -> Any:
    """Return ROC AUC, log-loss and seconds of each classifier on each table [tables, classifiers, 3].

    Tables whose query rows do not show all classes of the training rows are left out: they have no ROC AUC.
    """
    tables = source.distribution("test", EpisodeShape(None, options.rows, ASKED), 1)
    found = []
    for index in range(options.tables):
        support, query = tables.episodes([index])
        x, y = torch.cat([support.x, query.x], 1)[0].double().numpy(), torch.cat([support.y, query.y], 1)[0].numpy()
        x, shown = x[:, ~np.isnan(x).all(0)], np.arange(options.rows)
        asked = np.arange(options.rows, len(y))
        if set(y[asked]) == set(y[shown]):
            found.append([score(make(), x, y, shown, asked) for make in classifiers.values()])
    return np.array(found)
