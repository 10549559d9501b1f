"""The `Algorithm` protocol: what a meta-learning method must implement, and what it may implement beside."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor

from metatrain.engine import Engine
from metatrain.models import Model
from metatrain.types import Context, MetaGradient, Params, Prediction
from tasks.types import Examples, TaskSpec, Tree


class ScoresItself(Protocol):
    """What an `Algorithm` may have beside its other methods, or in place of `trajectory` and `predict`.

    For methods that do not adapt to the support set and then predict any queries: that read support and query
    together, or sequences, or act in environments. Others are scored by `evaluation.evaluate.score_trajectory`.
    """

    def score(self, model: Model, params: Params, task: Any, context: Context) -> dict[str, Tensor]:
        """Return the scores of ONE task at each point of its trajectory, the last of which is the result.

        name -> [points], or [points, *shape] of a metric that is pooled over tasks. "inner_step": int64, the inner
        steps before each point, the same for all tasks. Other names are those of `metatrain.metrics.METRICS`, a
        primary one among them; `metatrain.metrics.measure` gives them for predictions. Passes through vmap. A method
        whose predictions of a query do not depend on the other queries says `transductive = False`.
        """


class EmbedsQueries(Protocol):
    """What an `Algorithm` may have whose features of queries are the same at every point of a trajectory.

    Queries are then embedded once for all points that are scored. `predict_embedded` is such an algorithm's `predict`.
    """

    def embed_queries(self, model: Model, params: Params, adapted: Any, x: Tree, context: Context) -> Tensor:
        """Return the features of `x` [n, D], which depend on the support set but not on the inner step."""

    def predict_features(self, model: Model, adapted: Any, features: Tensor) -> Prediction:
        """Return the predictions of the adapted learner for features [n, D] of queries."""


def predict_embedded(
    self: EmbedsQueries, model: Model, params: Params, adapted: Tree, x: Tree, context: Context
) -> Prediction:
    """Return the predictions of the adapted learner for `x` [n, *spec.x], by way of its features."""
    return self.predict_features(model, adapted, self.embed_queries(model, params, adapted, x, context))


def predictor(
    algorithm: "Algorithm", model: Model, params: Params, x: Tree, context: Context
) -> Callable[[Tree], Prediction]:
    """Return the function from adapted learners of one trajectory to their predictions for `x`.

    `x` is embedded once where `predict` is `predict_embedded`; a subclass with a `predict` of its own is asked for it.
    """
    if getattr(type(algorithm), "predict", None) is not predict_embedded:
        return lambda adapted: algorithm.predict(model, params, adapted, x, context)
    embeds: Any = algorithm
    features: Tensor | None = None

    def predict(adapted: Tree) -> Prediction:
        nonlocal features
        if features is None:
            features = embeds.embed_queries(model, params, adapted, x, context)
        prediction: Prediction = embeds.predict_features(model, adapted, features)
        return prediction

    return predict


class MayRefuse(Protocol):
    """What a baseline may have that is not for all tasks."""

    def offered(self, spec: TaskSpec) -> bool:
        """Return whether it is for tasks of this kind at all: of others nobody asks why it is left out."""

    def refusal(self, spec: TaskSpec) -> str | None:
        """Return in one line why it does not apply to tasks of `spec`, such as "its inputs are no arrays"; or None."""


def predicts(algorithm: object) -> bool:
    """Return whether an algorithm adapts to a support set and then predicts any examples; others score themselves."""
    return callable(getattr(algorithm, "trajectory", None)) and callable(getattr(algorithm, "predict", None))


def is_offered(algorithm: object, spec: TaskSpec) -> bool:
    """Return whether a baseline is for tasks of this kind at all."""
    offered = getattr(algorithm, "offered", None)
    return offered is None or bool(offered(spec))


def refusal_of(algorithm: object, spec: TaskSpec) -> str | None:
    """Return why an algorithm does not apply to tasks of `spec`, in one line; None if it does."""
    refusal = getattr(algorithm, "refusal", None)
    return None if refusal is None else refusal(spec)


class Algorithm(Protocol):
    """A meta-learning method: pure functions for ONE task, beside the settings they close over.

    Implementations are frozen dataclasses; their fields are the settings under `algorithm.` in a configuration.
    Optional: a `score` of their own (`ScoresItself`); features of queries that do not adapt (`EmbedsQueries`);
    `reads_sequences = True` if tasks are to be sequences (`LabelledSequence`), which it scores itself;
    `reads_masks = True` if support sets may be padded (`PaddedExamples`); `reads_missing = True` if inputs may be nan;
    `trim(tasks)`, which leaves out padding that all tasks of a batch share; `separate_support = True` if support
    examples may have another shape than queries (`TaskSpec.support`); `attention(model, params, adapted, x, context)`,
    the weights [q, n] of queries on support examples, for pictures; `phases`, the outer steps at which what is
    computed changes, each to be compiled.
    """

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        """Return the meta-parameters before the first step."""

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Tree]:
        """Yield what is adapted after 0, 1, ... inner steps, each a tree of tensors; one if there are no steps."""

    def predict(self, model: Model, params: Params, adapted: Tree, x: Tree, context: Context) -> Prediction:
        """Return the predictions of the adapted learner for `x` [n, *spec.x]."""

    def meta_gradient(self, model: Model, params: Params, tasks: Any, context: Context, engine: Engine) -> MetaGradient:
        """Sum over a batch of tasks the gradient of each one's query loss with respect to `params`."""
