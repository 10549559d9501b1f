"""In-context learning on tables: a Transformer with attention between the features of a row, and between rows.

As in TabPFN v2 (Hollmann et al. 2025) and nanoTabPFN (arXiv 2511.03634), in small, with a column for each class: the
numbers of classes carry no meaning, as in EquiTabPFN (Arbel et al. 2025).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metatrain.algorithms.in_context.table_network import TableTransformer, class_surplus
from metatrain.algorithms.labels import seen_classes, without_unseen
from metatrain.algorithms.metric.comparison import one_hot, query_gradient, require_classes
from metatrain.engine import Engine
from metatrain.models import Model, Part
from metatrain.models.transformer import recorded_attention
from metatrain.types import Context, MetaGradient, Params
from metatrain.validation import require, require_divisor, require_positive
from tasks.types import Episode, Examples, PaddedExamples, TaskSpec, members

PREFIX = "table."
LEAST_STD = 1e-6
"""Standard deviation, beside a mean of 1, below which a column is constant but for rounding."""


class ReadTable(NamedTuple):
    """A support set that was read: what queries attend to, and what their values are standardised by."""

    cells: tuple[Tensor, ...]
    """The support cells of each layer [m, F + C, width], the last C columns those of the classes."""
    surplus: Tensor
    """How much more frequent each class is in a row than in all [m, C]."""
    rows: Tensor
    """Which rows are members of the support set [m]."""
    columns: Tensor
    """Which columns are read [F + C]: features that have a value in it, and classes that it shows."""
    mean: Tensor
    std: Tensor
    """Of the known values of each feature [F]."""
    seen: Tensor
    """Which classes are in it [C]."""


@dataclass(frozen=True)
class InContextTable:
    """Predict the class of a query row by a Transformer over the cells of a table: the support rows and that query.

    A cell is the value of one feature in one row, standardised by the support rows and cut off at ±`clip`; missing
    values (nan) have an embedding of their own. Each class is one more column, of yes and no, unknown in queries. In
    each layer a cell attends to the cells of its row, then to those of its column in the support set, where classes
    also read the evidence of each feature (`ClassEvidence`); a feed-forward network follows; each is added to its input
    and normalised. The logit of a class is read from its cell of the query.
    The order of rows, of features and of classes changes nothing, and neither do other queries; no parameter is tied
    to the number of classes. Those that the support set does not show have no probability. The weights are parameters
    "table.…".
    """

    width: int = 64
    layers: int = 3
    heads: int = 4
    hidden: int = 128
    clip: float = 10.0

    reads_masks = True
    reads_missing = True

    def __post_init__(self) -> None:
        require_positive("algorithm", width=self.width, layers=self.layers, heads=self.heads, hidden=self.hidden)
        require_positive("algorithm", clip=self.clip)
        require_divisor(self.width, self.heads)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        require_classes("in_context_table", spec)
        found = f"algorithm.name: in_context_table reads rows of numbers, x [features], and these tasks have {spec.x}"
        require(isinstance(spec.x, tuple) and len(spec.x) == 1, f"{found}: set protonet")
        plain = model.num_features == spec.x[0] and not model.initial(head=False)
        require(plain, "model.name: in_context_table reads the features themselves: set model.name=identity")
        return self._network.initial(seed)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[ReadTable]:
        classes, rows = model.spec.ways or 0, members(support)
        known = ~support.x.isnan() & rows[:, None]
        mean, std = known_mean_and_std(support.x, known)
        seen = seen_classes(support, classes)
        columns = torch.cat([known.any(0), seen])
        labels, values = one_hot(support.y, classes, mean.dtype), self._values(support.x, mean, std)
        surplus = class_surplus(labels, rows)
        cells = self._network(params, values, labels, surplus, columns, rows, ())
        yield ReadTable(cells, surplus, rows, columns, mean, std, seen)

    def predict(self, model: Model, params: Params, adapted: ReadTable, x: Tensor, context: Context) -> Tensor:
        values = self._values(x, adapted.mean, adapted.std)
        unknown = values.new_full((len(x), len(adapted.seen)), torch.nan)
        read = adapted.surplus, adapted.columns, adapted.rows, adapted.cells
        logits: Tensor = self._network(params, values, unknown, *read)
        return without_unseen(logits, adapted.seen, model.spec.ways)

    def attention(self, model: Model, params: Params, adapted: ReadTable, x: Tensor, context: Context) -> Tensor:
        """Return the weights [q, m] of the last attention to the support rows, their mean over heads and classes."""
        with recorded_attention() as found:
            self.predict(model, params, adapted, x, context)
        return found[-1][adapted.seen].mean((0, 1))

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        """Sum over tasks the gradient of the queries' cross-entropy, without the columns of classes that none has."""
        classes = 1 + int(max(tasks.support.y.max(), tasks.query.y.max()))
        narrow = model.for_tasks(model.spec._replace(ways=classes), params)
        return query_gradient(self, narrow, params, self.trim(tasks), context, engine)

    def trim(self, tasks: Episode) -> Episode:
        """Leave out the rows that pad every support set of a batch of tasks, and features that all of them lack."""
        support: Any = tasks.support
        inside = support.mask if isinstance(support, PaddedExamples) else torch.ones_like(support.y, dtype=torch.bool)
        rows = inside.any(0)
        features = (~support.x.isnan() & inside[..., None]).flatten(0, 1).any(0)
        kept = support._replace(x=support.x[:, rows][..., features], y=support.y[:, rows])
        if isinstance(kept, PaddedExamples):
            kept = kept._replace(mask=kept.mask[:, rows])
        return tasks._replace(support=kept, query=tasks.query._replace(x=tasks.query.x[..., features]))

    def _values(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return what is read of each value: standardised, its logarithm, and whether it is missing [n, F, 3]."""
        missing = x.isnan()
        z = torch.where(missing, 0.0, (x - mean) / std).clamp(-self.clip, self.clip)
        return torch.stack([z, z.sign() * z.abs().log1p(), missing.to(z.dtype)], -1)

    @property
    def _network(self) -> Part:
        return Part(PREFIX, partial(TableTransformer, self.width, self.layers, self.heads, self.hidden))


def known_mean_and_std(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the known values of each column [F]; 0 and 1 where there are none.

    The deviation of a constant column is 1 too. x, known: [n, F].
    """
    count = known.sum(0).clamp(min=1)
    mean = torch.where(known, x, 0.0).sum(0) / count
    std = (torch.where(known, x - mean, 0.0).square().sum(0) / count).sqrt()
    return mean, torch.where(std > LEAST_STD * (1 + mean.abs()), std, 1.0)
