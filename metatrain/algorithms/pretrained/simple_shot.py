"""SimpleShot (Wang et al. 2019): pretrained features, centred and L2-normalised, and the nearest class mean."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from metatrain.algorithms.metric.protonet import squared_distances
from metatrain.algorithms.pretrained import pretraining as pre
from metatrain.algorithms.pretrained.nearest_centroid import Centroids
from metatrain.engine import Engine, loss_gradient
from metatrain.models import Model
from metatrain.types import Context, MetaGradient, Params, Prediction
from metatrain.validation import require_positive
from tasks.types import Episode, Examples, TaskSpec, Tree

MEAN = "centre.mean"


@dataclass(frozen=True)
class SimpleShot:
    """Predict the class n of least ‖z(x) − c_n‖², z(x) = (f(x) − f̄) / ‖f(x) − f̄‖, c_n the mean of z ("CL2N", §2).

    f̄, the mean feature of the training classes, is no weight that a gradient moves: before each validation it is set
    to the mean over the first `centre_tasks` training minibatches at the present weights (`statistics`). So it is
    exact for the weights that are tested, and the same for any number of workers. Parameter "centre.mean" [D].
    """

    classifier: pre.Classifier = pre.LINEAR
    centre_tasks: int = 64

    trains_on_classes: ClassVar[bool] = True
    kept: ClassVar[tuple[str, ...]] = (MEAN,)
    """The parameters that `statistics` gives."""

    def __post_init__(self) -> None:
        require_positive("algorithm", centre_tasks=self.centre_tasks)

    @property
    def statistics_tasks(self) -> int:
        """Return how many training tasks `statistics` is averaged over."""
        return self.centre_tasks

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        params = pre.init_classifier(self, model, spec, seed)
        like = next(iter(params.values()))
        return params | {MEAN: torch.zeros(model.feature_shape, dtype=like.dtype).flatten()}

    def statistics(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        """Sum over minibatches the mean feature, as the gradient of ⟨m, mean f⟩ with respect to m = `centre.mean`."""

        def product(params: Params, task: Episode, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
            weights = {name: value.detach() for name, value in params.items()}
            features = model.embed(weights, torch.cat([task.support.x, task.query.x]), context.noise)
            value = params[MEAN] @ features.mean(0)
            return value, {"loss": value}

        return loss_gradient(product, params, tasks, context, engine)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Centroids]:
        features, y, support_x = pre.embed_support(model, params, support, context)
        yield Centroids(pre.class_means(_centred(features, params), y, model.spec.ways or 0), support_x)

    def predict(self, model: Model, params: Params, adapted: Centroids, x: Tree, context: Context) -> Prediction:
        features = pre.embed_queries(model, params, x, adapted.support_x, context)
        return -squared_distances(_centred(features, params), adapted.means)

    meta_gradient = pre.classification_gradient


def _centred(features: Tensor, params: Params) -> Tensor:
    return F.normalize(features - params[MEAN], dim=1)
