"""Draw what a causal model begins with and what is seen of it: roots, classes, and columns as people measure them."""

import numpy as np

from tasks.random import Integers, Reals

CLASS_LAST = 0.7
"""The share of tables of two classes whose class is an effect; of n classes, 2 / n of it.

In the others the class is the cause of the features, with a mean of the roots for each: many classes are seldom the
levels of one number.
"""
LEVELS = (2, 12)
"""Values of an ordinal or categorical feature."""
MOST_MISSING = 0.4
"""The greatest share of values that a feature lacks."""


def draw_roots(draw: np.random.Generator, rows: int, width: int, classes: int) -> tuple[Reals, Integers | None]:
    """Return roots [rows, width], and the class of each row where it is their cause; else None."""
    noise = draw.standard_normal((rows, width)) if draw.random() < 0.7 else draw.uniform(-1.7, 1.7, (rows, width))
    if draw.random() < CLASS_LAST * 2 / classes:
        groups = int(draw.integers(1, 5))
        centres = draw.standard_normal((groups, width)) * draw.uniform(0.0, 3.0)
        return centres[draw.integers(0, groups, rows)] + noise, None
    target = draw.choice(classes, rows, p=_shares(draw, classes))
    if len(np.unique(target)) < 2:
        target[: rows // 2] = (target[0] + 1) % classes
    centres = draw.standard_normal((classes, width)) * np.exp(draw.uniform(np.log(0.5), np.log(4.0)))
    return centres[target] + noise, target


def draw_classes(draw: np.random.Generator, deciding: Reals, classes: int) -> Integers:
    """Return the class of each row, decided by nodes [rows, k]: by thresholds of the first, by the nearest of several
    centres, or by the greatest of several linear functions.
    """
    kind = draw.random()
    if kind < 0.5:
        levels = np.sort(np.cumsum(_shares(draw, classes))[:-1])
        return np.searchsorted(np.quantile(deciding[:, 0], levels), deciding[:, 0]).astype(np.int64)
    bias = draw.uniform(0.0, 1.0) * draw.standard_normal(classes)
    if kind < 0.75:
        centres = deciding[draw.integers(0, len(deciding), classes)]
        scores = -np.square(deciding[:, None] - centres).sum(-1)
    else:
        scores = deciding @ draw.standard_normal((deciding.shape[1], classes))
    nearest: Integers = (scores + bias).argmax(1)
    return nearest


def _shares(draw: np.random.Generator, classes: int) -> Reals:
    """Return shares of classes, from equal to very unequal."""
    return draw.dirichlet(np.full(classes, np.exp(draw.uniform(np.log(1.0), np.log(50.0)))))


def as_measured(draw: np.random.Generator, features: Reals) -> Reals:
    """Return each feature [rows, d] as it would be measured: as it is, skewed, ordinal, or categorical by codes."""
    measured = features.copy()
    plain = draw.random()  # a table of one kind of features is more frequent than one of each
    for column in range(features.shape[1]):
        values = features[:, column]
        kind = draw.random() if draw.random() > plain else 1.0
        if kind < 0.25:
            measured[:, column] = np.exp(draw.uniform(0.3, 1.5) * values)
        elif kind < 0.75:
            levels = int(np.exp(draw.uniform(np.log(LEVELS[0]), np.log(LEVELS[1] + 1))))
            between = np.sort(draw.choice(values, levels - 1))
            codes = np.searchsorted(between, values)
            measured[:, column] = codes if kind < 0.5 else draw.permutation(levels)[codes]
        scale, shift = np.exp(draw.uniform(-3.0, 3.0)), 3.0 * draw.standard_normal()
        measured[:, column] = scale * (measured[:, column] + shift)
    return measured


def with_missing(draw: np.random.Generator, features: Reals) -> Reals:
    """Return the features with nan in some rows: at random, or where a feature is large."""
    for column in range(features.shape[1]):
        share = draw.uniform(0.0, MOST_MISSING) if draw.random() < 0.5 else 0.0
        values = features[:, column]
        gone = draw.random(len(values)) < share
        if draw.random() < 0.3:
            gone = (values > np.quantile(values, 1 - share)) & (draw.random(len(values)) < 0.8)
        features[gone, column] = np.nan
    return features
