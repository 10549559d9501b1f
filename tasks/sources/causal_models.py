"""Draw structural causal models: random functions by which some columns of a table cause others.

A model is a directed acyclic graph. Its roots are drawn first, and every further node is a random function of a few
earlier nodes plus noise (Müller et al. 2022, "Transformers can do Bayesian inference"; Hollmann et al. 2023, "TabPFN").
All take numpy's generator `draw`, and values are standardised over the rows of the table.
"""

from collections.abc import Callable

import numpy as np

from tasks.random import Integers, Reals

ACTIVATIONS: tuple[Callable[[Reals], Reals], ...] = (
    np.tanh,
    lambda z: np.maximum(z, 0.0),
    lambda z: z,
    np.sin,
    np.abs,
    np.square,
    lambda z: np.exp(-np.square(z)),
    lambda z: (z > 0).astype(np.float64),
)
MOST_PARENTS = 6
DEEPEST = 4
"""Splits in the longest path of a tree mechanism."""
LEAST_NOISE, MOST_NOISE = 0.01, 0.5
"""Range of the standard deviation of the noise of a node, whose values have standard deviation 1 without it."""
TREES = 0.4
"""The share of layers of nodes that are decision trees of their parents; others are linear with an activation."""


def grow(draw: np.random.Generator, roots: Reals, count: int) -> Reals:
    """Add nodes to roots [rows, R] until there are `count`: return [rows, count], causes before effects."""
    nodes = standardised(roots)
    layers = int(draw.integers(1, 5))
    for layer in range(layers):
        size = -(-(count - nodes.shape[1]) // (layers - layer))
        if size > 0:
            mechanism = _trees if draw.random() < TREES else _linear
            values = standardised(mechanism(draw, nodes, size))
            noise = np.exp(draw.uniform(np.log(LEAST_NOISE), np.log(MOST_NOISE), size))
            values = values + noise * draw.standard_normal(values.shape)
            nodes = np.concatenate([nodes, standardised(values)], 1)
    return nodes


def standardised(values: Reals) -> Reals:
    """Return columns of mean 0 and standard deviation 1 over the rows [rows, n]; zeros for a constant column."""
    centred = values - values.mean(0)
    std = centred.std(0)
    return centred / np.where(std > 1e-9, std, np.inf)  # type: ignore[no-any-return]


def _parents(draw: np.random.Generator, nodes: Reals, size: int, most: int) -> Integers:
    """Return the numbers of the parents of `size` nodes, [size, m] with m at most `most`; one may be there twice."""
    number = int(draw.integers(1, most + 1))
    return draw.integers(0, nodes.shape[1], (size, number))


def _linear(draw: np.random.Generator, nodes: Reals, size: int) -> Reals:
    """Return a(Σ_j w_j x_j + b) of the parents x of each node, with one of ACTIVATIONS for all [rows, size]."""
    parents = _parents(draw, nodes, size, MOST_PARENTS)
    weights = draw.standard_normal(parents.shape)
    sums = (nodes[:, parents] * weights).sum(-1) / np.sqrt(np.square(weights).sum(-1))
    activation = ACTIVATIONS[int(draw.integers(len(ACTIVATIONS)))]
    return activation(draw.uniform(0.5, 2.0) * sums + draw.standard_normal(size))


def _trees(draw: np.random.Generator, nodes: Reals, size: int) -> Reals:
    """Return a decision tree of the parents of each node [rows, size]: one question a level, the same for all branches.

    A question compares a parent with its value in some row; leaves are normal.
    """
    parents = _parents(draw, nodes, size, DEEPEST)
    thresholds = nodes[draw.integers(0, len(nodes), parents.shape), parents]
    levels = parents.shape[1]
    leaf = (nodes[:, parents] > thresholds) @ (1 << np.arange(levels))
    leaves = draw.standard_normal((size, 2**levels))
    return leaves[np.arange(size), leaf]
