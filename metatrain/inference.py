"""Load a trained run as a learner that adapts to a few labelled examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metatrain.algorithms.base import Algorithm
from metatrain.config.load import load_config
from metatrain.models import Model, build_model
from metatrain.models.dropout import NO_NOISE
from metatrain.runs import Run, checkpoints
from metatrain.runs.locations import open_run
from metatrain.training.worker import with_inner_steps
from metatrain.types import Context, Params
from metatrain.validation import require
from tasks.types import Examples, TaskSpec, Tree

_CONTEXT = Context(torch.tensor(0), torch.tensor(NO_NOISE))


class Moments(NamedTuple):
    """Mean and std that images in [0, 1] were normalised by, (x − mean) / std, each [1 or C, 1, 1]."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class AdaptedLearner:
    """A learner after it has seen a support set; `labels` are the user's own, in the order of the logits."""

    algorithm: Algorithm
    model: Model
    params: Params
    adapted: Tree
    labels: list[Any] | None
    moments: Moments | None = None

    def probabilities(self, x: Any) -> Tensor:
        """Return [n, classes], columns in the order of `labels`. x: [n, *x], or [n, H, W] for grey images."""
        return self._outputs(x).softmax(1)

    def predict(self, x: Any) -> Any:
        """Return the label of each x, as given in the support set; for regression the values [n, *y]."""
        outputs = self._outputs(x)
        return outputs if self.labels is None else [self.labels[i] for i in outputs.argmax(1)]

    def _outputs(self, x: Any) -> Tensor:
        with torch.no_grad():
            images = as_inputs(x, self.model.spec, self.moments)
            return self.algorithm.predict(self.model, self.params, self.adapted, images, _CONTEXT)


@dataclass(frozen=True)
class Learner:
    """A meta-trained learner: `adapt` to a support set, then `predict`."""

    algorithm: Algorithm
    model: Model
    params: Params
    moments: Moments | None = None

    def adapt(self, support: tuple[Any, Sequence[Any]]) -> AdaptedLearner:
        """Adapt to support = (x, y): x [n, *x] as numpy or torch, y n labels of any kind.

        Images are uint8 or in [0, 1]; what the run normalised by (tasks.mean, tasks.std) is applied here.
        """
        x, y = as_inputs(support[0], self.model.spec, self.moments), support[1]
        require(len(x) == len(y), f"support: {len(x)} examples and {len(y)} labels: use one label for each")
        model, labels = self.model, None
        if self.model.spec.ways is None:
            targets = torch.as_tensor(np.asarray(y)).to(x.dtype)
        else:
            spelt = [label.item() if isinstance(label, (Tensor, np.generic)) else label for label in y]
            labels = list(dict.fromkeys(spelt))
            targets = torch.tensor([labels.index(label) for label in spelt])
            model = self.model.for_tasks(self.model.spec._replace(ways=len(labels)), self.params)
        with torch.no_grad():
            *_, adapted = self.algorithm.trajectory(model, self.params, Examples(x, targets), _CONTEXT)
        return AdaptedLearner(self.algorithm, model, self.params, adapted, labels, self.moments)


def as_inputs(x: Any, spec: TaskSpec, moments: Moments | None = None) -> Tensor:
    """Return x as a float tensor [n, *spec.x], n ≥ 1, scaled as in training; add a missing channel of one.

    Images of bytes (uint8) are divided by 255.
    """
    try:
        # A copy: torch takes neither negative strides nor, without a warning, memory that is read-only.
        inputs = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x, order="C"))
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"x: no array of numbers ({reason}): use examples of shape {spec.x}") from error
    is_bytes = inputs.dtype == torch.uint8 and len(spec.x) == 3
    inputs = inputs.to(torch.get_default_dtype()) / (255 if is_bytes else 1)
    if inputs.shape[1:] == spec.x[1:] and spec.x[:1] == (1,):
        inputs = inputs[:, None]
    require(
        tuple(inputs.shape[1:]) == spec.x,
        f"x: examples of shape {tuple(inputs.shape[1:])}; this learner was trained on {spec.x}: reshape or resize them",
    )
    require(len(inputs) > 0, "x: holds no examples: use one or more")
    require(bool(torch.isfinite(inputs).all()), "x: holds values that are not finite: fix or remove those examples")
    return inputs if moments is None else (inputs - moments.mean) / moments.std


def load(run: str | Path, trust: bool = False) -> Learner:
    """Load the learner of a run, a folder or s3://BUCKET/RUN, with its best parameters by validation, on the CPU.

    trust: import the code that a run names which this user did not make; otherwise that is a ValueError.
    """
    home = open_run(str(run))
    config = load_config(home.config, trust=trust)
    params, _, noted = best_params(home)
    model = build_model(config.model, _spec_of(noted["spec"]), config.seed)
    algorithm = with_inner_steps(config.algorithm, config.evaluation.inner_steps)
    return Learner(algorithm, model, params, _moments_of(config.tasks.source))


def _moments_of(source: Any) -> Moments | None:
    """Return the moments of sources with settings `mean` and `std`, None for others."""
    mean, std = getattr(source, "mean", ()), getattr(source, "std", ())
    if not (mean or std):
        return None
    return Moments(
        *(torch.tensor(values or (default,))[:, None, None] for values, default in ((mean, 0.0), (std, 1.0)))
    )


def _spec_of(plain: dict[str, Any]) -> TaskSpec:
    return TaskSpec(plain["kind"], plain["ways"], tuple(plain["x"]), tuple(plain["y"]))


def best_params(home: Run) -> tuple[Params, int, dict[str, Any]]:
    """Return the best parameters by validation (else the newest), the newest step, and the manifest's `extra`."""
    found = checkpoints.newest(home.checkpoints)
    if found is None:
        raise ValueError(f"{home.where}: holds no checkpoint yet: go on with `metatrain train --resume {home.where}`")
    best = found.snapshot["best"]["step"]
    step = best if best >= 0 else found.step
    params = checkpoints.load(home.checkpoints, step)["params"]
    return params, found.step, checkpoints.manifest(home.checkpoints, step)["extra"]
