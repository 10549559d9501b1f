"""The Transformer of tables: layers in which cells read their row and their column, and classes read the features.

Its three axes (rows, features, classes) have no numbering: an order of any of them changes nothing.
"""

import torch
from torch import Tensor, nn

from metatrain.models.transformer import FeedForward, SetAttention


class TableTransformer(nn.Module):
    """Embed cells, apply layers, and read the logits of queries from their cells of the classes."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.values = nn.Linear(3, width)
        self.no, self.yes, self.unknown = (nn.Parameter(torch.randn(width)) for _ in range(3))
        self.layers = nn.ModuleList(TableLayer(width, heads, hidden) for _ in range(layers))
        self.output = FeedForward(width, hidden, 1, 2)

    def forward(
        self,
        values: Tensor,
        labels: Tensor,
        surplus: Tensor,
        columns: Tensor,
        rows: Tensor,
        given: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...] | Tensor:
        """Return the cells of the support rows in each layer; logits [n, C] of queries, where these are `given`.

        values: [n, F, 3]; labels: [n, C], 1 at the class of a support row, nan in queries; surplus: of the support set,
        as `ClassEvidence` reads it [m, C]; columns: which have values [F + C]; rows: which are members [m].
        """
        features = values.shape[1]
        cells = torch.cat([self.values(values), self._embed(labels)], 1)
        kept, last = [], len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, TableLayer)
            cells = layer.read_row(cells, columns)
            kept.append(cells)
            if given or number < last:
                others = given[number] if given else cells
                # Of the last layer only the classes are read.
                cells = layer.read_columns(cells, others, surplus, columns[:features], rows, number == last)
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
        self.evidence = ClassEvidence(width, heads, -(-width // 4))
        self.linear = FeedForward(width, hidden, width, 2)
        self.row_norm, self.column_norm, self.norm = (nn.LayerNorm(width) for _ in range(3))

    def read_row(self, cells: Tensor, columns: Tensor) -> Tensor:
        """Return cells [n, F + C, width] that have attended to those of their rows, in `columns`."""
        read: Tensor = self.row_norm(cells + self.row(cells, cells, cells, columns))
        return read

    def read_columns(
        self, cells: Tensor, others: Tensor, surplus: Tensor, known: Tensor, rows: Tensor, only_classes: bool
    ) -> Tensor:
        """Return cells [n, F + C, width], or those of the classes alone, that have read the support cells `others`.

        Each attends to its column in the rows of the support set; cells of the classes also read the evidence of the
        features. others: [m, F + C, width]; surplus: [m, C]; known: which features have values [F].
        """
        by_column, seen, features = cells.transpose(0, 1), others.transpose(0, 1), len(known)
        shown = by_column[:features], seen[:features]
        if only_classes:
            evidence = self.column.average(*shown, surplus.expand(features, self.column.heads, -1, -1), rows)
            read = []
        else:
            found, evidence = self.column.with_average(*shown, surplus, rows)
            read = [found]
        classes, others_of = by_column[features:], seen[features:]
        told = self.evidence(evidence, shown[0], known).transpose(0, 1)
        read.append(self.column(classes, others_of, others_of, rows) + told)
        kept = classes if only_classes else by_column
        mixed = self.column_norm(kept + torch.cat(read)).transpose(0, 1)
        followed: Tensor = self.norm(mixed + self.linear(mixed))
        return followed


class ClassEvidence(nn.Module):
    """Tell each class by which features the rows like this one are of it: a learned, soft form of naive Bayes.

    Feature f of a row attends to the support rows j with weights a_fj (one set for each head), and finds the surplus
    e_fc = Σ_j a_fj (y_jc / p_c - 1) of class c, where y_jc is 1 if row j is of class c and p_c is the share of class c.
    The class reads W mean_f ReLU(A e_fc + B h_f), where h_f is the cell of the feature.

    Without it cells of features could not tell the classes apart, nor cells of classes the features: neither have
    numbers, and each sees the others through a sum over all of them.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.surplus, self.cell = nn.Linear(heads, hidden), nn.Linear(width, hidden, bias=False)
        self.output = nn.Linear(hidden, width)

    def forward(self, surplus: Tensor, cells: Tensor, known: Tensor) -> Tensor:
        """Return [n, C, width]. surplus: [F, heads, n, C]; cells: [F, n, width]; known: which features count [F]."""
        # Features stand last but one: so the rounding of their sum does not depend on the place of a row.
        own = self.cell(cells).transpose(0, 1)[:, None]
        hidden = (self.surplus(surplus.permute(2, 3, 0, 1)) + own).relu()
        mean = torch.where(known[:, None], hidden, 0.0).sum(-2) / known.sum().clamp(min=1)
        read: Tensor = self.output(mean)
        return read


def class_surplus(one_hot: Tensor, rows: Tensor) -> Tensor:
    """Return y_jc / p_c - 1 of each support row j and class c [m, C], where p_c is the share of the class in `rows`."""
    share = (one_hot * rows[:, None]).sum(0) / rows.sum().clamp(min=1)
    return one_hot / torch.where(share > 0, share, 1.0) - 1
