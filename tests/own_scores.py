"""Algorithms that score themselves, to test that seam: what a user's own module may hold."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metatrain.algorithms.metric.protonet import squared_distances
from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import measure, task_loss
from metatrain.models import Model
from metatrain.types import Context, MetaGradient, Params
from tasks.types import Episode, TaskSpec


@dataclass(frozen=True)
class SoftKMeans:
    """Refine class means by the queries, all together (Ren et al. 2018, arXiv 1803.00676, eq. 3): no `predict`."""

    refinements: int = 2

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        return model.initial(head=False)

    def logits(self, model: Model, params: Params, task: Episode, context: Context) -> list[Tensor]:
        """Return the logits of the queries after 0, 1, … refinements, each [n, ways]."""
        count = len(task.support.y)
        embedded = model.embed(params, torch.cat([task.support.x, task.query.x]), context.noise)
        known = torch.eye(model.spec.ways or 0, dtype=embedded.dtype)[task.support.y]
        of_queries, found = torch.zeros_like(known[:0]), []
        for _ in range(self.refinements + 1):
            weights = torch.cat([known, of_queries]) if len(of_queries) else known
            members = embedded[: len(weights)]
            centres = weights.T @ members / weights.sum(0)[:, None]
            found.append(-squared_distances(embedded[count:], centres))
            of_queries = found[-1].softmax(1)
        return found

    def score(self, model: Model, params: Params, task: Episode, context: Context) -> dict[str, Tensor]:
        steps = torch.arange(self.refinements + 1)
        return {"inner_step": steps} | measure(self.logits(model, params, task, context), task.query.y)

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        def loss(params: Params, task: Episode, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
            return task_loss(self.logits(model, params, task, context)[-1], task.query.y)

        return loss_gradient(loss, params, tasks, context, engine)


@dataclass(frozen=True)
class Renamed(SoftKMeans):
    """Returns its scores under another `name`, without those `left_out` (a+b), cut to `points`."""

    name_of_accuracy: str = "accuracy"
    left_out: str = ""
    points: int | None = None

    def score(self, model: Model, params: Params, task: Episode, context: Context) -> dict[str, Tensor]:
        found = super().score(model, params, task, context)
        found[self.name_of_accuracy] = found.pop("accuracy")[: self.points]
        return {name: values for name, values in found.items() if name not in self.left_out.split("+")}


@dataclass(frozen=True)
class Length(SoftKMeans):
    """Scores every task by the square of its parameters' length, as the primary metric `metric`."""

    metric: str = "return"

    def score(self, model: Model, params: Params, task: Episode, context: Context) -> dict[str, Tensor]:
        length = torch.stack([value.square().sum() for value in params.values()]).sum()
        return {"inner_step": torch.zeros(1, dtype=torch.int64), self.metric: length[None]}
