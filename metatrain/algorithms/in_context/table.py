"""In-context learning on tables: a Transformer with attention between the features of a row, and between rows.

As in TabPFN v2 (Hollmann et al. 2025) and nanoTabPFN (arXiv 2511.03634), in small, with a column for each class: the
numbers of classes carry no meaning, as in EquiTabPFN (Arbel et al. 2025).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metatrain.algorithms.labels import seen_classes, without_unseen
from metatrain.algorithms.metric.comparison import one_hot, query_gradient, require_classes
from metatrain.engine import Engine
from metatrain.models import Model, Part
from metatrain.models.transformer import FeedForward, SetAttention, recorded_attention
from metatrain.types import Context, MetaGradient, Params
from metatrain.validation import require, require_divisor, require_positive
from tasks.types import Episode, Examples, PaddedExamples, TaskSpec, members

PREFIX = "table."
LEAST_STD = 1e-6
"""Standard deviation, beside a mean of 1, below which a column is constant but for rounding."""


class ReadTable(NamedTuple):
    """A support set that was read: what queries attend to, and what their values are standardised by."""

    cells: tuple[Tensor, ...]
    """The support cells of each layer [m, F + C, width], the last C columns those of the classes; of the last layer
    those columns alone [m, C, width]."""
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
    each layer a cell attends to the cells of its row, then to those of its column in the support set; a feed-forward
    network follows; each is added to its input and normalised. The logit of a class is read from its cell of the query.
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
        cells = self._network(params, values, labels, columns, rows, ())
        yield ReadTable(cells, rows, columns, mean, std, seen)

    def predict(self, model: Model, params: Params, adapted: ReadTable, x: Tensor, context: Context) -> Tensor:
        values = self._values(x, adapted.mean, adapted.std)
        unknown = values.new_full((len(x), len(adapted.seen)), torch.nan)
        logits: Tensor = self._network(params, values, unknown, adapted.columns, adapted.rows, adapted.cells)
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


class TableTransformer(nn.Module):
    """Embed cells, apply layers, and read the logits of queries from their cells of the classes."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.values = nn.Linear(3, width)
        self.no, self.yes, self.unknown = (nn.Parameter(torch.randn(width)) for _ in range(3))
        self.layers = nn.ModuleList(TableLayer(width, heads, hidden) for _ in range(layers))
        self.output = FeedForward(width, hidden, 1, 2)

    def forward(
        self, values: Tensor, labels: Tensor, columns: Tensor, rows: Tensor, given: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...] | Tensor:
        """Return the cells of the support rows in each layer; logits [n, C] of queries, where these are `given`.

        values: [n, F, 3]; labels: [n, C], 1 at the class of a support row, nan in queries; columns: [F + C]; rows: [m].
        """
        classes = labels.shape[1]
        cells = torch.cat([self.values(values), self._embed(labels)], 1)
        kept, last = [], len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, TableLayer)
            # Of the last layer only the classes are read.
            cells = layer.read_row(cells[:, -classes:] if number == last else cells, cells, columns)
            kept.append(cells)
            if given or number < last:
                cells = layer.read_column(cells, given[number] if given else cells, rows)
        logits: Tensor = self.output(cells)[..., 0]
        return logits if given else tuple(kept)

    def _embed(self, labels: Tensor) -> Tensor:
        """Return the cells of the classes [n, C, width]: yes, no, or unknown where the label is nan."""
        each = labels[..., None]
        return torch.where(each.isnan(), self.unknown, torch.where(each > 0, self.yes, self.no))


class TableLayer(nn.Module):
    """Attention within rows, attention within columns, and a feed-forward network, each added and normalised."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.row, self.column = (SetAttention(width, width, width, heads) for _ in range(2))
        self.linear = FeedForward(width, hidden, width, 2)
        self.row_norm, self.column_norm, self.norm = (nn.LayerNorm(width) for _ in range(3))

    def read_row(self, cells: Tensor, all_cells: Tensor, columns: Tensor) -> Tensor:
        """Return cells [n, c, width] that have attended to those of their rows [n, F + 1, width], in `columns`."""
        read: Tensor = self.row_norm(cells + self.row(cells, all_cells, all_cells, columns))
        return read

    def read_column(self, cells: Tensor, others: Tensor, rows: Tensor) -> Tensor:
        """Return cells [n, c, width] that have attended to those of their columns in other rows [m, c, width]."""
        by_column, seen = cells.transpose(0, 1), others.transpose(0, 1)
        read = self.column_norm(cells + self.column(by_column, seen, seen, rows).transpose(0, 1))
        followed: Tensor = self.norm(read + self.linear(read))
        return followed
