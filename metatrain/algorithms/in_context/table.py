"""In-context learning on tables: a Transformer with attention between the features of a row, and between rows.

As in TabPFN v2 (Hollmann et al. 2025) and nanoTabPFN (arXiv 2511.03634), in small.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metatrain.algorithms.attention import last_attention
from metatrain.algorithms.labels import require_labels, seen_classes, without_unseen
from metatrain.algorithms.metric.comparison import one_hot, query_gradient, require_classes
from metatrain.engine import Engine
from metatrain.models import Model, Part
from metatrain.models.transformer import FeedForward, SetAttention
from metatrain.types import Context, MetaGradient, Params
from metatrain.validation import require, require_divisor, require_positive
from tasks.types import Episode, Examples, PaddedExamples, TaskSpec, members

PREFIX = "table."
LEAST_STD = 1e-6
"""Standard deviation, beside a mean of 1, below which a column is constant but for rounding."""


class ReadTable(NamedTuple):
    """A support set that was read: what queries attend to, and what their values are standardised by."""

    cells: tuple[Tensor, ...]
    """The support cells of each layer [m, F + 1, width], the last column that of the targets; of the last layer that
    column alone [m, 1, width]."""
    rows: Tensor
    """Which rows are members of the support set [m]."""
    columns: Tensor
    """Which columns have a value in it [F + 1]: the others are not read. That of the targets has."""
    mean: Tensor
    std: Tensor
    """Of the known values of each feature [F]."""
    seen: Tensor
    """Which classes are in it [classes]."""


@dataclass(frozen=True)
class InContextTable:
    """Predict the class of a query row by a Transformer over the cells of a table: the support rows and that query.

    A cell is the value of one feature in one row, standardised by the support rows and cut off at ±`clip`; missing
    values (nan) have an embedding of their own. The target is one more column, unknown in queries. In each layer a
    cell attends to the cells of its row, then to those of its column in the support set; a feed-forward network
    follows; each is added to its input and normalised. The class is read from the target's cell of the query. The
    order of rows and of features changes nothing, and neither do other queries. Classes that the support set does not
    show have no probability. The weights are parameters "table.…".
    """

    width: int = 64
    layers: int = 3
    heads: int = 4
    hidden: int = 128
    clip: float = 10.0

    reads_masks = True
    reads_missing = True
    attention = last_attention

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
        return self._network(spec.ways or 0).initial(seed)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[ReadTable]:
        classes, rows = self._classes(model, params), members(support)
        known = ~support.x.isnan() & rows[:, None]
        mean, std = known_mean_and_std(support.x, known)
        columns = torch.cat([known.any(0), torch.ones_like(rows[:1])])
        labels = one_hot(support.y, classes, mean.dtype)
        values = self._values(support.x, mean, std)
        cells = self._network(classes)(params, values, labels, columns, rows, ())
        yield ReadTable(cells, rows, columns, mean, std, seen_classes(support, classes))

    def predict(self, model: Model, params: Params, adapted: ReadTable, x: Tensor, context: Context) -> Tensor:
        values = self._values(x, adapted.mean, adapted.std)
        network = self._network(self._classes(model, params))
        logits: Tensor = network(params, values, (), adapted.columns, adapted.rows, adapted.cells)
        return without_unseen(logits, adapted.seen, model.spec.ways)

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        return query_gradient(self, model, params, self.trim(tasks), context, engine)

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

    def _classes(self, model: Model, params: Params) -> int:
        """Return the number of classes that the weights were made for. ValueError: tasks have more."""
        classes = len(params[f"{PREFIX}classes"])
        require_labels(model, classes)
        return classes

    def _network(self, classes: int) -> Part:
        return Part(PREFIX, partial(TableTransformer, classes, self.width, self.layers, self.heads, self.hidden))


def known_mean_and_std(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the known values of each column [F]; 0 and 1 where there are none.

    The deviation of a constant column is 1 too. x, known: [n, F].
    """
    count = known.sum(0).clamp(min=1)
    mean = torch.where(known, x, 0.0).sum(0) / count
    std = (torch.where(known, x - mean, 0.0).square().sum(0) / count).sqrt()
    return mean, torch.where(std > LEAST_STD * (1 + mean.abs()), std, 1.0)


class TableTransformer(nn.Module):
    """Embed cells, apply layers, and read the logits of queries from their target cells."""

    def __init__(self, classes: int, width: int, layers: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.values = nn.Linear(3, width)
        self.classes = nn.Parameter(torch.randn(classes, width))
        self.unknown = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(TableLayer(width, heads, hidden) for _ in range(layers))
        self.output = FeedForward(width, hidden, classes, 2)

    def forward(
        self,
        values: Tensor,
        labels: Tensor | tuple[()],
        columns: Tensor,
        rows: Tensor,
        given: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...] | Tensor:
        """Return the cells of the support rows in each layer; logits [n, classes] of queries, where these are `given`.

        values: [n, F, 3]; labels: [n, classes] of the support rows, () of queries; columns: [F + 1]; rows: [m].
        """
        targets = labels @ self.classes if isinstance(labels, Tensor) else self.unknown.expand(len(values), -1)
        cells = torch.cat([self.values(values), targets[:, None]], 1)
        kept, last = [], len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, TableLayer)
            # Of the last layer only the targets are read.
            cells = layer.read_row(cells[:, -1:] if number == last else cells, cells, columns)
            kept.append(cells)
            if given or number < last:
                cells = layer.read_column(cells, given[number] if given else cells, rows)
        logits: Tensor = self.output(cells[:, 0])
        return logits if given else tuple(kept)


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
