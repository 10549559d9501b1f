"""What learners of sequences share: their inputs, the loss of all steps, and the score by instance of a class.

A method of this family has `logits(params, features, labels)` for all T steps at once, of which row t depends on the
features up to t and on the labels before it alone; and the `prefix` of its parameters.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from metatrain.algorithms.labels import require_labels
from metatrain.algorithms.metric.comparison import one_hot, require_classes
from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import measure, task_loss
from metatrain.models import Model, Part
from metatrain.models.dropout import fold
from metatrain.models.model import BODY
from metatrain.types import Context, MetaGradient, Params
from metatrain.validation import require
from tasks.types import LabelledSequence, OracleSequence, TaskSpec


class ReadsSequences(Protocol):
    """A method that predicts each example of a sequence from those before it."""

    prefix: str
    """Of its parameters, among which "output.bias" has a number for each label."""

    def logits(self, params: Params, features: Tensor, labels: Tensor) -> Tensor:
        """Return logits [T, labels] of f(x_t) [T, D] and of the labels y_t, one-hot [T, labels]."""


class ReadsOffsetLabels(Protocol):
    """A method whose network takes [f(x_t), y_{t−1}] of all steps [T, D + labels], and gives logits [T, labels]."""

    def network(self, features: int, labels: int) -> Part: ...


def logits_of_offset_labels(self: ReadsOffsetLabels, params: Params, features: Tensor, labels: Tensor) -> Tensor:
    """Return the logits of a network that reads each label at the step after its example, zeros at the first."""
    told = torch.cat([torch.zeros_like(labels[:1]), labels[:-1]])
    found: Tensor = self.network(features.shape[1], labels.shape[1])(params, torch.cat([features, told], 1))
    return found


def require_sequences(name: str, model: Model, spec: TaskSpec) -> None:
    """Check that tasks have classes, and that the network takes each example by itself. ValueError: not so."""
    require_classes(name, spec)
    alone = f"model: {name} may not see later examples of a sequence, as statistics of batches do: set"
    require(model.normalization == "none", f"{alone} model.normalization=group, or none")


def labels_of(self: ReadsSequences, model: Model, params: Params) -> int:
    """Return how many labels the network was made for. ValueError: tasks have more classes."""
    labels = len(params[f"{self.prefix}output.bias"])
    require_labels(model, labels)
    return labels


def predict_all(
    self: ReadsSequences, model: Model, params: Params, task: LabelledSequence | OracleSequence, context: Context
) -> Tensor:
    """Return logits of all steps [T, ways]."""
    features = model.embed(params, task.x, fold(context.noise, 0))
    if features.shape[1] > 1 and any(name.startswith(BODY) for name in params):
        features = contrasted(features)
    labels = one_hot(task.y, labels_of(self, model, params), features.dtype)
    return self.logits(params, features, labels)[:, : model.spec.ways]


def contrasted(features: Tensor) -> Tensor:
    """Return features [T, D] less their mean over the steps so far, each step then of mean 0 and variance 1.

    Untrained networks map all images to almost one point, of which nothing could be recalled; normalising by the whole
    batch would tell of later examples.
    """
    features = F.layer_norm(features, features.shape[1:])
    steps = torch.arange(1, len(features) + 1, dtype=features.dtype, device=features.device)
    return F.layer_norm(features - features.cumsum(0) / steps[:, None], features.shape[1:])


def sequence_gradient(
    self: ReadsSequences, model: Model, params: Params, tasks: LabelledSequence, context: Context, engine: Engine
) -> MetaGradient:
    """Sum over tasks the gradient of the mean cross-entropy of all steps."""

    def loss(params: Params, task: LabelledSequence, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        return task_loss(predict_all(self, model, params, task, context), task.y)

    return loss_gradient(loss, params, tasks, context, engine)


def sequence_score(
    self: ReadsSequences, model: Model, params: Params, task: LabelledSequence | OracleSequence, context: Context
) -> dict[str, Tensor]:
    """Return the scores of the predictions of all steps, by `score_steps`."""
    return score_steps(model.spec, predict_all(self, model, params, task, context), task)


def score_steps(spec: TaskSpec, logits: Tensor, task: LabelledSequence | OracleSequence) -> dict[str, Tensor]:
    """Return the scores of the logits [T, ways] of all steps: name -> [points].

    A point is the first, second, … example of every class, and "inner_step" how many examples of the class were seen
    before, so that the second instance stands at 1. Where classes do not come up equally often (`TaskSpec.by_step`), a
    point is a step, and "inner_step" how many steps were seen before.
    """
    if spec.by_step:
        exact = task.posterior if isinstance(task, OracleSequence) else None
        steps = [slice(t, t + 1) for t in range(len(task.y))]
        scores = [measure([logits[t]], task.y[t], None if exact is None else exact[t]) for t in steps]
        by_name = {name: torch.cat([one[name] for one in scores]) for name in scores[0]}
        return {"inner_step": torch.arange(len(steps))} | by_name
    ways = spec.ways or 0
    instances = len(task.y) // ways
    # Steps in order of class, those of one class in order of time.
    by_class = task.y.argsort(stable=True).view(ways, instances)
    labels = torch.arange(ways, device=logits.device)
    found = measure([logits[steps] for steps in by_class.T], labels)
    return {"inner_step": torch.arange(instances)} | found
