"""Load a trained run as a learner that adapts to a few labelled examples."""

import math
import reprlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metatrain.algorithms.base import Algorithm, predicts
from metatrain.config.best_params import best_params
from metatrain.config.load import load_config
from metatrain.densities import mean_of, std_of
from metatrain.models import Model, build_model
from metatrain.models.dropout import NO_NOISE, uniform
from metatrain.models.normalization import mixes_examples
from metatrain.models.protocol import Normalization
from metatrain.models.threads import alone
from metatrain.runs.locations import open_run
from metatrain.settings import Config
from metatrain.training.snapshots import check_params
from metatrain.training.worker import with_inner_steps
from metatrain.types import Context, Params, Prediction
from metatrain.user_folders import FilePrediction, Place, describe_predictions, read_queries, read_support
from metatrain.user_inputs import as_inputs, as_labels, as_support, as_targets, count_of, split_support
from metatrain.validation import require
from tasks.plugins import USER_CODE_ERRORS, describe_error
from tasks.types import Examples, Shape, TaskSpec, Tree, as_shapes, map_shapes, shapes_in

if TYPE_CHECKING:
    from metatrain.estimator import RowClassifier

Choice = Literal["inductive", "transductive"]
"""How a learner normalises queries."""

_CONTEXT = Context(torch.tensor(0), torch.tensor(NO_NOISE))
_TOGETHER = 256
"""Queries that a learner predicts at a time if they do not influence each other."""
_LARGEST = 2**31
"""The largest size of an example or number of classes."""
_SHORT = reprlib.Repr()
_SHORT.maxother = 80


@dataclass(frozen=True, eq=False, repr=False)
class AdaptedLearner:
    """A learner after it has seen a support set; `labels` are the user's own, in the order of the logits.

    Inductive: what it says of an example depends on the support set and that example alone. Transductive: examples
    that are given together are normalised by their own statistics, so that each prediction depends on the others.
    """

    algorithm: Algorithm
    model: Model
    params: Params
    adapted: Tree
    labels: list[Any] | None
    source: Any = None
    """The task source of the run, whose preprocessing examples get."""

    @property
    def normalization(self) -> Normalization:
        """Return "inductive", "transductive", or "none" for a network without statistics of batches."""
        return self.model.normalization

    def __repr__(self) -> str:
        labels = "" if self.labels is None else f", labels={_SHORT.repr(self.labels)}"
        return f"AdaptedLearner({_describe(self.algorithm, self.model)}{labels})"

    def probabilities(self, x: Any) -> Tensor:
        """Return [n, classes], columns in the order of `labels`. x: [n, *x], or [n, H, W] for grey images."""
        require(self.labels is not None, "probabilities: this learner regresses values and has no classes: use predict")
        return self._outputs(x).softmax(1)

    def predict(self, x: Any) -> Any:
        """Return the label of each x, as given in the support set; for regression the values [n, *y]."""
        outputs = self._outputs(x)
        return outputs if self.labels is None else [self.labels[i] for i in outputs.argmax(1)]

    def std(self, x: Any) -> Tensor:
        """Return the standard deviation of each value of x, [n, *y], of a learner that predicts densities."""
        prediction = self._predictions(x)
        if isinstance(prediction, Tensor):
            raise ValueError("std: this learner predicts values without a density: use predict, or train cnp or tnp")
        return std_of(prediction)

    def predict_folder(self, folder: Place) -> list[FilePrediction]:
        """Say of each image file below a folder, or in a zip, which class it shows: see `Learner.adapt_folder`."""
        found = read_queries(self.source, self.model.spec, folder)
        labels = [str(label) for label in self.labels or ()]
        return describe_predictions(found.files, labels, self.probabilities(found.images))

    def _outputs(self, x: Any) -> Tensor:
        """Return logits [n, ways], or values [n, *y]: of densities their means."""
        return mean_of(self._predictions(x))

    def _predictions(self, x: Any) -> Prediction:
        inputs = as_inputs(x, self.model.spec, self.source)
        if self.normalization == "transductive" and len(inputs) < (enough := max(2, len(self.labels or ()))):
            warnings.warn(_describe_few(len(inputs), enough, self.model), stacklevel=4)
        # Queries that influence each other are predicted together, others in parts, which bounds memory.
        parts = [inputs] if self.normalization == "transductive" else torch.split(inputs, _TOGETHER)
        with torch.no_grad(), alone(self.model) as model, _explain_errors("predict"):
            found = [self.algorithm.predict(model, self.params, self.adapted, part, _CONTEXT) for part in parts]
            together: Prediction = tree_map(lambda *parts: torch.cat(parts), *found)
        finite = bool(torch.isfinite(mean_of(together)).all())
        require(finite, "predictions are not finite: check the scale of the support set and of x, or train on such")
        return together


@dataclass(frozen=True, eq=False, repr=False)
class Learner:
    """A meta-trained learner: `adapt` to a support set, then `predict`. Threads may share it."""

    algorithm: Algorithm
    model: Model
    params: Params
    source: Any = None
    """The task source of the run, whose preprocessing examples get."""

    @property
    def normalization(self) -> Normalization:
        """Return "inductive", "transductive", or "none" for a network without statistics of batches."""
        return self.model.normalization

    def __repr__(self) -> str:
        spec = self.model.spec
        trained = "" if spec.ways is None else f", trained on {spec.ways} classes"
        return f"Learner({_describe(self.algorithm, self.model)}, x={spec.x}{trained})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Learner":
        return self  # nothing in it ever changes, and scikit-learn copies the parameters of estimators

    def adapt(self, support: tuple[Any, Any], *rest: Any) -> AdaptedLearner:
        """Adapt to support = (x, y): x [n, *x] as numpy or torch; y n labels of any kind, or values [n, *y].

        Where the run's support examples are no queries (`TaskSpec.support`), x has their shape, or is a dict of such.

        Images are uint8 or in [0, 1]; what the run normalised by (tasks.mean, tasks.std) is applied here.
        """
        given, y = split_support(support, *rest)
        model, labels = self.model, None
        x = as_support(given, model.spec, self.source)
        if model.spec.ways is None:
            targets = as_targets(y, count_of(x), model.spec)
        else:
            each = as_labels(y, count_of(x))
            labels = list(dict.fromkeys(each))
            targets = torch.tensor([labels.index(label) for label in each])
            model = model.for_tasks(model.spec._replace(ways=len(labels)), self.params)
        with torch.no_grad(), alone(model) as own, _explain_errors("adapt"):
            *_, adapted = self.algorithm.trajectory(own, self.params, Examples(x, targets), _CONTEXT)
        return AdaptedLearner(self.algorithm, model, self.params, adapted, labels, self.source)

    def estimator(self) -> "RowClassifier":
        """Return this learner as a scikit-learn classifier of rows of numbers, which adapts in `fit`.

        ValueError: the run's tasks are no such rows, or have no classes.
        """
        from metatrain.estimator import RowClassifier

        spec = self.model.spec
        rows = spec.ways is not None and spec.support is None and isinstance(spec.x, tuple) and len(spec.x) == 1
        require(rows, f"estimator: this learner reads examples of shape {spec.x}, not rows of numbers: use adapt")
        return RowClassifier(self)

    def adapt_folder(self, folder: Place) -> AdaptedLearner:
        """Adapt to the images of a folder, or a zip, that holds a folder for each class, decoded as the run's own.

        Drawings for runs on omniglot and strokes are dark ink on light paper.
        """
        found = read_support(self.source, self.model.spec, folder)
        return self.adapt((found.images, found.folders))


def _describe(algorithm: Algorithm, model: Model) -> str:
    return f"{_SHORT.repr(algorithm)}, normalization={model.normalization!r}"


def _describe_few(given: int, enough: int, model: Model) -> str:
    """Return the warning about a transductive learner that is given less than `enough` queries."""
    remedy = f"predict {enough} or more of mixed classes together"
    if model.can_be_inductive:
        remedy += ", or leave out normalization='transductive' of metatrain.load"
    return (
        f"{given} of at least {enough} queries: this learner is transductive, so that each prediction depends on the "
        f"other queries of the call, and few of them mislead it: {remedy}"
    )


def load(run: str | Path, normalization: Choice | None = None, trust: bool = False) -> Learner:
    """Load the learner of a run, a folder or s3://BUCKET/RUN, with its best parameters by validation, on the CPU.

    normalization: "inductive" or "transductive"; None is inductive, also for a run that was trained transductively,
    unless the run's own network cannot be: then it warns.
    trust: import the code that a run names which this user did not make; otherwise that is a ValueError.
    """
    choices = (None, "inductive", "transductive")
    require(normalization in choices, f"normalization: no '{normalization}': choose inductive or transductive")
    home = open_run(str(run))
    config = load_config(home.config, trust=trust)
    whole = f"{home.where}: {config.names.algorithm} scores tasks as a whole and predicts no examples"
    require(predicts(config.algorithm), f"{whole}: use metatrain evaluate")
    params, step, noted = best_params(home)
    model = _build(config, _spec_of(noted["spec"]), params, step)
    algorithm = with_inner_steps(config.algorithm, config.evaluation.inner_steps)
    learner = Learner(algorithm, model, params, config.tasks.source)
    if config.names.of_user_code:
        learner = replace(learner, model=_look_for_mixing(learner))
    if normalization is None and not learner.model.can_be_inductive:
        warnings.warn(
            f"{home.where}: this learner is transductive, since predictions of its network depend on the whole batch "
            f"({learner.model.mixing}): predict queries of mixed classes together, or use metatrain.models.TaskNorm "
            "in the module",
            stacklevel=2,
        )
        normalization = "transductive"
    return replace(learner, model=learner.model.with_normalization(normalization or "inductive"))


def _look_for_mixing(learner: Learner) -> Model:
    """Return the model; its `mixing` is set if the user's code lets queries influence each other at these parameters.

    Adapts to one example of each class, inductively, predicts two queries, changes the second and looks at the first.
    """
    model, spec = learner.model, learner.model.spec
    if not model.can_be_inductive:
        return model
    model, shown = model.with_normalization("inductive"), spec.ways or 2
    support, x = (map_shapes(partial(_draw, shown + 2), shapes) for shapes in (spec.support_x, spec.x))
    seen, asked = tree_map(lambda leaf: leaf[:shown], support), tree_map(lambda leaf: leaf[shown:], x)
    y = torch.arange(shown) if spec.ways else torch.zeros(shown, *spec.y)
    algorithm, params = learner.algorithm, learner.params
    with torch.no_grad(), _explain_errors("load"):
        *_, adapted = algorithm.trajectory(model, params, Examples(seen, y), _CONTEXT)
        mixes = mixes_examples(lambda two: mean_of(algorithm.predict(model, params, adapted, two, _CONTEXT)), asked)
    found = f"in the forward of {type(model.body).__name__} or in {type(algorithm).__name__}"
    return replace(model, normalization="transductive", mixing=found) if mixes else model


def _draw(count: int, shape: Shape) -> Tensor:
    return uniform(torch.tensor(1), torch.Size((count, *shape)), torch.device("cpu")).to(torch.get_default_dtype())


@contextmanager
def _explain_errors(what: str) -> Iterator[None]:
    """Turn errors of a model or algorithm into ValueError of one line with the remedy."""
    try:
        yield
    except USER_CODE_ERRORS as error:
        remedy = "use fewer examples at a time" if "allocate" in str(error) else "use other examples, or fix that code"
        raise ValueError(f"{what}: {describe_error(error)}: {remedy}") from error


def _build(config: Config, spec: TaskSpec, params: Params, step: int) -> Model:
    """Build the model of a run. ValueError: it cannot be, or its checkpoint holds other parameters."""
    classes = spec.ways if spec.kind == "classification" else 1
    inputs = [*shapes_in(spec.x), *shapes_in(spec.support_x)]
    sizes = (*(size for shape in inputs for size in shape), *spec.y, classes)
    sound = all(size is not None and 0 < size < _LARGEST for size in sizes)
    sound = sound and all(math.prod(shape) < _LARGEST for shape in inputs)
    require(sound, f"the checkpoint of step {step}: was made on examples of shape {spec.x}: restore its manifest")
    with _explain_errors("load"):
        model = build_model(config.model, spec, config.seed)
        wanted = config.algorithm.init(model, spec, config.seed)
    check_params(params, wanted, step)
    return model


def _spec_of(plain: dict[str, Any]) -> TaskSpec:
    support = plain.get("support")
    shapes = as_shapes(plain["x"]), tuple(plain["y"]), None if support is None else as_shapes(support)
    return TaskSpec(plain["kind"], plain["ways"], *shapes, missing=plain.get("missing", False))
